"""Go templates: each expected output was checked against Go's text/template or Docker's client."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import goformat
from proto.gotemplate import (
    MISSING,
    SERVICE_STEPS_MAX,
    Budget,
    Function,
    Struct,
    TemplateError,
    expand,
    parse,
)

DATA = {
    "Name": "web",
    "Slot": 3,
    "Ratio": 0.25,
    "Up": True,
    "Empty": "",
    "None": None,
    "Labels": {"b": "2", "a": "1"},
    "List": ["x", "y", "z"],
    "Nested": {"Deep": {"Er": 7}},
    "Struct": Struct(A=1, B="b"),
}

RENDERED = [
    ("plain", "plain"),
    ("{{.Name}}", "web"),
    ("{{ .Nested.Deep.Er }}", "7"),
    ("{{.Labels}}", "map[a:1 b:2]"),
    ("{{.List}}", "[x y z]"),
    ("{{.Struct}}", "{1 b}"),
    ("{{.None}}", "<no value>"),
    ("{{.Up}} {{.Ratio}}", "true 0.25"),
    ("{{json .Labels}}", '{"b":"2","a":"1"}'),
    ('{{json "<a>"}}', '"<a>"'),
    ('{{join .List ","}}', "x,y,z"),
    ('{{join .None ","}}', ""),
    ('{{index (split "a:b" ":") 1}}', "b"),
    ("{{lower `ABC`}}{{upper .Name}}", "abcWEB"),
    ('{{title "the quick it\'s"}}', "The Quick It'S"),
    ("[{{pad .Name 1 2}}]", "[ web  ]"),
    ("{{truncate .Name 2}}", "we"),
    ('{{.Name | printf "%s-%d" "a" | printf "%v"}}', "a-%!d(string=web)"),
    ('{{println "a" 1}}', "a 1\n"),
    ("{{print 1 2 .Name 3 4}}", "1 2web3 4"),
    ("{{len .List}}{{len .Name}}", "33"),
    ("{{index .List 0}}{{index .Labels `a`}}", "x1"),
    ("{{slice .Name 1}}{{slice .Name 0 1}}", "ebw"),
    ("{{if eq .Slot 1 2 3}}yes{{end}}", "yes"),
    ("{{ne .Name `x`}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 2 2}}", "true true true false true"),
    ("{{if .Empty}}a{{else if .Name}}b{{else}}c{{end}}", "b"),
    ("{{if .Empty}}a{{else if .None}}b{{else}}c{{end}}", "c"),
    ("{{with .Nested.Deep}}{{.Er}}{{$.Name}}{{end}}", "7web"),
    ("{{with .Empty}}a{{else with .Name}}{{.}}{{end}}", "web"),
    ("{{with $x := .Name}}{{$x}}{{end}}", "web"),
    ("{{range .List}}{{.}};{{end}}", "x;y;z;"),
    ("{{range $i, $v := .List}}{{$i}}{{$v}}{{end}}", "0x1y2z"),
    ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "a=1 b=2 "),
    ("{{range .None}}a{{else}}none{{end}}", "none"),
    ("{{range .List}}{{if eq . `y`}}{{break}}{{end}}{{.}}{{end}}", "x"),
    ("{{range .List}}{{if eq . `y`}}{{continue}}{{end}}{{.}}{{end}}", "xz"),
    ("{{range 3}}{{.}}{{end}}", "012"),
    ("{{$x := 1}}{{range .List}}{{$x = .}}{{end}}{{$x}}", "z"),
    ("{{$x := 1}}{{with 2}}{{$x := 3}}{{$x}}{{end}}{{$x}}", "31"),
    ("{{$x := 1}}{{range .List}}{{with $x := .}}{{break}}{{end}}{{end}}{{$x}}", "1"),
    ("a {{- .Name -}} b", "awebb"),
    ("a {{/* a }} comment */}} b", "a  b"),
    ("a {{- /* a comment */ -}} b", "ab"),
    ("{{(index .List 1)}}{{(.Nested).Deep.Er}}", "y7"),
    ("{{and 1 0 .Undefined}}{{or 0 `x` .Undefined}}{{not 1}}", "0xfalse"),
    ('{{"a\\n\\"b"}}{{`\\n`}}{{\'a\'}}{{0x1F}}{{1e3}}{{-5}}', 'a\n"b\\n97311000-5'),
    ("{{true}}{{nil | not}}", "truetrue"),
    ("{{print nil}}", "<nil>"),
]

ERRORS = [
    (
        "{{.Foo}}",
        'template: :1:2: executing "" at <.Foo>: map has no entry for key "Foo"',
    ),
    (
        "a\n b{{.Struct.Foo}}",
        'template: :2:11: executing "" at <.Struct.Foo>: can\'t evaluate field Foo in type struct',
    ),
    (
        "{{.Name.Foo}}",
        'template: :1:7: executing "" at <.Name.Foo>: can\'t evaluate field Foo in type string',
    ),
    ("{{.None.Foo}}", "nil pointer evaluating interface {}.Foo"),
    ("{{", "template: :1: unclosed action"),
    ("{{/* a", "template: :1: unclosed comment"),
    ("\n{{foo}}", 'template: :2: function "foo" not defined'),
    ("{{if .Name}}", "unexpected EOF"),
    ("{{end}}", "template: :1: unexpected {{end}}"),
    ("{{if 1}}{{else}}{{else}}{{end}}", "expected end; found {{else}}"),
    ("{{$x}}", 'undefined variable "$x"'),
    ("{{$x = 1}}", 'undefined variable "$x"'),
    ("{{if}}a{{end}}", "missing value for if"),
    ("{{}}", "missing value for command"),
    ("{{.Name 1}}", "can't give argument to non-function .Name"),
    ("{{1 | .Name}}", "can't give argument to non-function"),
    ('{{"a}}', "unterminated quoted string"),
    ("{{(1}}", "unclosed left paren"),
    ("{{1)}}", 'unexpected ")" in command'),
    ("{{join .Name}}", "wrong number of args for join: want 2 got 1"),
    ("{{index .List 9}}", "error calling index: index out of range: 9"),
    ("{{eq 1 `a`}}", "error calling eq: incompatible types for comparison"),
    ("{{join 1 `a`}}", "error calling join: expected list; found int"),
    ("{{range .Name}}{{end}}", "range can't iterate over web"),
    ('{{define "a"}}{{end}}', "{{define}} is not supported here"),
    ("{{break}}", "{{break}} outside {{range}}"),
    ("{{08}}", "bad number syntax"),
    ("{{1 2}}", "can't give argument to non-function 1"),
    ("{{.Name#}}", "unexpected '#' in action"),
    ("{{len 3}}", "error calling len: len of type int"),
]


@pytest.mark.parametrize(("source", "expected"), RENDERED)
def test_renders_as_go(source: str, expected: str) -> None:
    """The language gives Go's output."""
    assert expected == parse(source).render(DATA)


@pytest.mark.parametrize(("source", "expected"), ERRORS)
def test_errors_name_the_place_and_the_reason(source: str, expected: str) -> None:
    """A mistake is a TemplateError with Go's text."""
    with pytest.raises(TemplateError) as caught:
        parse(source).render(DATA)
    assert expected in caught.value.message
    assert caught.value.message.startswith("template: ")


def test_missing_key_can_print_no_value() -> None:
    """With `missing_is_error=False` a mapping's missing key prints Go's default text."""
    assert parse("{{.Foo}}").render({}, missing_is_error=False) == "<no value>"


def test_lookup_answers_fields_of_other_objects() -> None:
    """Objects are read through the callback only; what it does not know is an error."""

    class Thing:
        """Has an attribute that templates must not see."""

        secret = "s"

    def lookup(_thing: object, name: str) -> object:
        return "known" if name == "Known" else MISSING

    assert parse("{{.Known}}").render(Thing(), lookup=lookup) == "known"
    for field in ("secret", "__class__"):
        with pytest.raises(TemplateError, match="can't evaluate field"):
            parse("{{." + field + "}}").render(Thing(), lookup=lookup)


def test_functions_can_be_added_and_replaced() -> None:
    """A caller's functions are called with evaluated arguments, and may hide a builtin."""
    functions = {
        "secret": Function(lambda name: f"<{name}>", 1, 1),
        "upper": Function(lambda _text: "mine", 1, 1),
    }
    assert parse("{{secret .}}{{upper .}}", functions=functions).render("a") == "<a>mine"


@pytest.mark.parametrize(
    "source",
    [
        "{{range 1000}}{{range 1000}}{{end}}{{end}}",
        "{{range 1000000000}}a{{end}}",
        '{{$x := "aaaaaaaa"}}{{range 100}}{{$x = print $x $x}}{{end}}',
        "{{pad `a` 99999 99999}}",
        "{{" + "(" * 200 + "1" + ")" * 200 + "}}",
        "{{if 1}}" * 200 + "{{end}}" * 200,
    ],
)
def test_hostile_templates_are_bounded(source: str) -> None:
    """Loops, growth and nesting end in an error, not in exhausted memory or stack."""
    with pytest.raises(TemplateError):
        parse(source).render({}, output_max=10_000)


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        ("%d %s %q %v %t %%", (1, "a", 'b"', [1], True), '1 a "b\\"" [1] true %'),
        ("%5d|%-5d|%05d|%+d", (1, 2, -3, 4), "    1|2    |-0003|+4"),
        ("%.2f %6.1f %g %e", (1.005, 2.25, 1e21, 12.5), "1.00    2.2 1e+21 1.250000e+01"),
        ("%x %X %#x %o %b %c %U", (255, 255, 255, 8, 5, 97, 97), "ff FF 0xff 10 101 a U+0061"),
        ("%5s|%-5s|%.1s", ("ab", "ab", "ab"), "   ab|ab   |a"),
        ("%d", (), "%!d(MISSING)"),
        ("%d", ("x",), "%!d(string=x)"),
        ("a", (1,), "a%!(EXTRA int=1)"),
        ("%", (), "%!(NOVERB)"),
        ("%*d", (4, 1), "   1"),
        ("%v %s", (None, None), "<nil> %!s(nil=<nil>)"),
        ("%q", (["a", "b"],), '["a" "b"]'),
        ("%x", ("hi",), "6869"),
        ("%T", (1.5,), "float64"),
        ("%999999999d", (1,), " " * 999 + "1"),
    ],
)
def test_printf_as_go(form: str, values: tuple[object, ...], expected: str) -> None:
    """`printf` formats as Go's and marks what it cannot."""
    assert expected == goformat.sprintf(form, *values)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1.0, "1"),
        (0.1, "0.1"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1.5e-7, "1.5e-07"),
        (0.0001, "0.0001"),
        (123456789.0, "123456789"),
        (-2.5, "-2.5"),
        (float("inf"), "+Inf"),
        (0.0, "0"),
    ],
)
def test_floats_print_as_go(number: float, expected: str) -> None:
    """`%v` of a float follows strconv's rules."""
    assert expected == goformat.format_float(number)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
PIECES = st.sampled_from(
    [
        *("{{", "}}", "{{- ", " -}}", "/*", "*/", "if ", "else", "end", "range ", "with ", "."),
        *(".A", ".B", "$", "$x", ":=", "=", "|", "(", ")", '"a"', "`b`", "1", "-2.5", "'c'", " "),
        *("index ", "len ", "printf ", "json ", "eq ", "and ", "slice ", "nil", "break", ",", "x"),
    ]
)


def assert_positioned(error: TemplateError) -> None:
    """Check that an error says where."""
    assert error.line >= 1
    assert error.message.startswith("template: ")


@given(st.lists(PIECES, max_size=25).map("".join), JSON)
def test_any_text_renders_or_raises_a_template_error(source: str, value: object) -> None:
    """No text and no data make the evaluator raise anything but a TemplateError."""
    try:
        parse(source).render({"A": value, "B": [value]}, output_max=2000)
    except TemplateError as error:
        assert_positioned(error)


@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_actions_is_copied(text: str) -> None:
    """A template without actions is its own output."""
    assert text == parse(text).render({})


@given(st.text())
def test_quoted_strings_survive(text: str) -> None:
    """A quoted string literal renders as the string, whatever is in it."""
    assume_printable = text.encode("utf-8", "ignore").decode()
    literal = goformat.quote(assume_printable)
    assert assume_printable == parse("{{" + literal + "}}").render({})


@given(JSON)
def test_json_of_any_data_is_json(value: object) -> None:
    """`json` prints what a JSON parser reads back."""
    assert value == json.loads(parse("{{json .}}").render(value))


# --- what a rendering may cost ---


@pytest.mark.parametrize(
    "source",
    [
        "{{range 1000}}{{range 1000}}{{range 1000}}{{.}}{{end}}{{end}}{{end}}",
        "{{range 20000}}" + "{{/* */}}x" * 100 + "{{end}}",
        '{{$s := pad "x" 500000 0}}{{range 1000}}{{len (upper $s)}}{{end}}',
        '{{$s := pad "x" 500000 0}}{{len (printf "%q" $s)}}{{len (printf "%q" $s)}}',
        '{{len (split (pad "x" 900000 0) "")}}',
        "{{.}}" * 20_000,
        "{{1}}" + "{{$a := 1}}" * 5_000,
    ],
)
def test_a_template_of_a_service_is_bounded(source):
    """Loops, long strings and long templates end with a sentence."""
    budget = Budget(SERVICE_STEPS_MAX)
    with pytest.raises(TemplateError, match=f"{SERVICE_STEPS_MAX} "):
        expand(source, Struct(), budget)


def test_a_budget_is_shared():
    """A thousand values cost together what one may."""
    budget = Budget(SERVICE_STEPS_MAX)
    with pytest.raises(TemplateError, match="steps"):
        assert [expand("{{range 50}}{{.}}{{end}}", Struct(), budget) for _ in range(1_000)]
    assert expand("no action", Struct(), budget) == "no action"


def test_a_usual_service_stays_far_below_its_budget():
    """Fifty variables that name what a task may name."""
    budget = Budget(SERVICE_STEPS_MAX // 4)
    task = Struct(Task=Struct(Slot="1", Name="web.1.abc"), Node=Struct(Hostname="host"))
    for _ in range(50):
        value = expand("NAME={{.Node.Hostname}}-{{.Task.Slot}}-{{.Task.Name}}", task, budget)
        assert value == "NAME=host-1-web.1.abc"

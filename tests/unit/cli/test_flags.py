"""Flags are parsed as Docker's client parses them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.cli.commands.service_flags import CREATE, UPDATE
from manager.cli.errors import FLAG_EXIT_CODE
from manager.cli.flags import Flag, FlagError, parse, process_count, unsigned

FLAGS = (
    Flag("detach", "", "", "d"),
    Flag("quiet", "", "", "q"),
    Flag("publish", "port", "", "p", many=True),
    Flag("replicas", "uint", "", "", unsigned),
    Flag("name", "string", ""),
)


@pytest.mark.parametrize(
    ("arguments", "found", "rest"),
    [
        (["a", "-d", "b"], {"detach": True}, ["a", "b"]),
        (["--detach=false", "a"], {"detach": False}, ["a"]),
        (["-d=false", "a"], {"detach": False}, ["a"]),
        (["-dq", "a"], {"detach": True, "quiet": True}, ["a"]),
        (
            ["-dp80", "-p", "81", "--publish=82"],
            {"detach": True, "publish": ["80", "81", "82"]},
            [],
        ),
        (["--replicas", "3"], {"replicas": 3}, []),
        (["--name="], {"name": ""}, []),
        (["--name", "--detach"], {"name": "--detach"}, []),
        (["--", "-d", "a"], {}, ["-d", "a"]),
        (["-", "a"], {}, ["-", "a"]),
        (["--name", "a", "--name", "b"], {"name": "b"}, []),
    ],
)
def test_forms_of_flags(arguments: list[str], found: dict[str, object], rest: list[str]) -> None:
    """Long, short, clustered, with and without `=`."""
    assert (found, rest) == parse(arguments, FLAGS)


def test_the_container_keeps_its_own_flags() -> None:
    """After the image nothing is a flag of ours."""
    found, rest = parse(["-d", "image", "-q", "--x"], FLAGS, interspersed=False)
    assert found == {"detach": True}
    assert rest == ["image", "-q", "--x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["-dx"], "unknown shorthand flag: 'x' in -dx"),
        (["--name"], "flag needs an argument: --name"),
        (["-p"], "flag needs an argument: 'p' in -p"),
        (["--detach=x"], 'invalid argument "x" for "-d, --detach" flag: must be true or false'),
        (
            ["--replicas=-1"],
            'invalid argument "-1" for "--replicas" flag: must be a whole number of 0 or more',
        ),
    ],
)
def test_bad_flags_say_why(arguments: list[str], message: str) -> None:
    """Docker's sentence and exit code."""
    with pytest.raises(FlagError) as caught:
        parse(arguments, FLAGS)
    assert caught.value.message.startswith(message)
    assert caught.value.exit_code == FLAG_EXIT_CODE


@given(st.lists(st.text(max_size=6), max_size=6))
def test_any_command_line_parses_or_is_refused(arguments: list[str]) -> None:
    """No command line raises anything but FlagError, and no argument is lost."""
    try:
        _, rest = parse(arguments, FLAGS)
    except FlagError:
        return
    assert set(rest) <= set(arguments)


@pytest.mark.parametrize("flags", [CREATE, UPDATE])
def test_names_are_unique(flags: tuple[Flag, ...]) -> None:
    """No two flags of a command share a name or a letter."""
    names = [flag.name for flag in flags]
    letters = [flag.short for flag in flags if flag.short]
    assert len(names) == len(set(names))
    assert len(letters) == len(set(letters))


@pytest.mark.parametrize(("text", "pids"), [("0", -1), ("-1", -1), ("9", 9)])
def test_no_limit_of_processes_is_said(text: str, pids: int) -> None:
    """A limit that is left out is the node's own, so "none" must be another number."""
    assert process_count(text) == pids

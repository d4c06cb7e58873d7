"""The Dockerfile instructions that `docker import --change` takes. Pure.

An instruction changes a copy of a configuration. Variables (`$NAME`, `${NAME:-default}`) are
expanded from the environment that the instructions before have set, except in CMD, ENTRYPOINT and
HEALTHCHECK, whose shell does that.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence

import msgspec

from proto.errors import InvalidError
from proto.json_text import JsonError, decode_json
from proto.objects import HEALTH_NS_MIN
from worker.images.config import RawConfig, RawHealth

_SHELL = ["/bin/sh", "-c"]
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_PORT_MAX = 65535
_VARIABLE = re.compile(
    r"\\\$|\$(?:(?P<plain>[A-Za-z_][A-Za-z0-9_]*)"
    r"|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)(?::(?P<operator>[-+])(?P<word>[^}]*))?\})"
)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}


def apply_changes(changes: Sequence[str], config: RawConfig | None = None) -> RawConfig:
    """Apply instructions in order to a configuration and return the new one.

    Raises:
        InvalidError: naming the instruction that cannot be understood.
    """
    result = msgspec.structs.replace(config) if config is not None else RawConfig()
    for change in changes:
        # One string may hold several lines, as an API client may send it.
        for line in change.splitlines():
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            _apply(result, text)
    return result


def parse_duration(text: str) -> int:
    """Read a duration as Go writes it (`1m30s`), in nanoseconds.

    Raises:
        InvalidError: it is not one.
    """
    total, end = 0.0, 0
    for match in _DURATION_PART.finditer(text):
        if match.start() != end:
            break
        total += float(match[1]) * _UNITS_NS[match[2]]
        end = match.end()
    if text == "0":
        return 0
    if not text or end != len(text):
        raise InvalidError(f'invalid duration "{text}": write it as 30s, 1m30s or 500ms')
    return round(total)


def _apply(config: RawConfig, line: str) -> None:
    word, _, rest = line.partition(" ")
    instruction, rest = word.upper(), rest.strip()
    handler = _HANDLERS.get(instruction)
    if handler is None:
        raise InvalidError(f"{word.lower()} is not a valid change command")
    if not rest and instruction not in {"CMD", "ENTRYPOINT"}:
        raise InvalidError(f"{instruction} requires at least one argument")
    handler(config, rest)


def _cmd(config: RawConfig, rest: str) -> None:
    config.cmd = _command(rest)


def _entrypoint(config: RawConfig, rest: str) -> None:
    config.entrypoint = _command(rest)


def _env(config: RawConfig, rest: str) -> None:
    environment = _environment(config)
    for name, value in _pairs("ENV", rest, environment).items():
        environment[name] = value
    config.env = [f"{name}={value}" for name, value in environment.items()]


def _label(config: RawConfig, rest: str) -> None:
    config.labels = {**(config.labels or {}), **_pairs("LABEL", rest, _environment(config))}


def _expose(config: RawConfig, rest: str) -> None:
    ports = dict(config.exposed_ports or {})
    for word in _expand(rest, _environment(config)).split():
        match = _PORT.fullmatch(word)
        if match is None:
            raise InvalidError(f"invalid containerPort: {word}")
        first, protocol = int(match[1]), (match[3] or "tcp").lower()
        last = int(match[2] or first)
        if not 0 < first <= last <= _PORT_MAX:
            raise InvalidError(f"invalid containerPort: {word}")
        for port in range(first, last + 1):
            ports[f"{port}/{protocol}"] = {}
    config.exposed_ports = ports


def _user(config: RawConfig, rest: str) -> None:
    user = _expand(rest, _environment(config))
    if len(user.split()) != 1:
        raise InvalidError("USER requires exactly one argument")
    config.user = user


def _volume(config: RawConfig, rest: str) -> None:
    names = _json_list(rest)
    if names is None:
        names = _expand(rest, _environment(config)).split()
    if not names or not all(name.strip() for name in names):
        raise InvalidError("VOLUME specified can not be an empty string")
    config.volumes = {**(config.volumes or {}), **{name.strip(): {} for name in names}}


def _workdir(config: RawConfig, rest: str) -> None:
    path = _expand(_unquoted(rest), _environment(config))
    # A relative one counts from the one before.
    joined = posixpath.normpath(posixpath.join("/", config.working_dir or "/", path))
    config.working_dir = "/" + joined.lstrip("/")


def _stopsignal(config: RawConfig, rest: str) -> None:
    signal = _expand(rest, _environment(config))
    if not re.fullmatch(r"\d{1,2}|(SIG)?[A-Z][A-Z0-9+-]*", signal, re.IGNORECASE):
        raise InvalidError(f"invalid signal: {signal}")
    config.stop_signal = signal


def _onbuild(config: RawConfig, rest: str) -> None:
    word = rest.split(maxsplit=1)[0].upper()
    if word in {"ONBUILD", "FROM", "MAINTAINER"}:
        raise InvalidError(f"{word} isn't allowed as an ONBUILD trigger")
    config.on_build = [*(config.on_build or ()), rest]


def _healthcheck(config: RawConfig, rest: str) -> None:
    health = RawHealth()
    while rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        rest = rest.strip()
        _health_option(health, option)
    kind, _, command = rest.partition(" ")
    command = command.strip()
    if kind.upper() == "NONE":
        if command:
            raise InvalidError("HEALTHCHECK NONE takes no arguments")
        config.healthcheck = RawHealth(test=["NONE"])
        return
    if kind.upper() != "CMD":
        raise InvalidError(f'Unknown type "{kind}" in HEALTHCHECK (try CMD)')
    if not command:
        raise InvalidError("Missing command after HEALTHCHECK CMD")
    words = _json_list(command)
    health.test = ["CMD", *words] if words is not None else ["CMD-SHELL", command]
    config.healthcheck = health


def _health_option(health: RawHealth, option: str) -> None:
    name, equals, value = option.removeprefix("--").partition("=")
    if not equals:
        raise InvalidError(f"HEALTHCHECK option --{name} needs a value")
    if name == "retries":
        if not value.isdigit() or int(value) < 1:
            raise InvalidError(f"--retries must be at least 1 (not {value})")
        health.retries = int(value)
        return
    fields = {
        "interval": "interval",
        "timeout": "timeout",
        "start-period": "start_period",
        "start-interval": "start_interval",
    }
    if name not in fields:
        raise InvalidError(f"unknown flag: {name}")
    duration = parse_duration(value)
    if 0 < duration < HEALTH_NS_MIN:
        raise InvalidError(f"Interval {name!r} cannot be less than 1ms")
    setattr(health, fields[name], duration)


_HANDLERS: Mapping[str, Callable[[RawConfig, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}


def _command(rest: str) -> list[str] | None:
    """Read the JSON form, or else take the line for the shell; nothing clears it."""
    words = _json_list(rest)
    if words is not None:
        return words
    return [*_SHELL, rest] if rest else None


def _json_list(text: str) -> list[str] | None:
    """Read a JSON list of strings; anything else is the other form and gives None."""
    if not text.startswith("["):
        return None
    try:
        return decode_json(text, list[str])
    except JsonError:
        return None


def _environment(config: RawConfig) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in config.env or ())
    return {name: value for name, _, value in pairs}


def _pairs(instruction: str, rest: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Read `name=value name="other value"`, or the old form `name value`."""
    words = _words(rest)
    if "=" not in words[0]:
        name, _, value = rest.partition(" ")
        if not value.strip():
            raise InvalidError(f"{instruction} must have two arguments")
        return {name: _expand(value.strip(), environment)}
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidError(
                f"Syntax error - can't find = in {word!r}. Must be of the form: name=value"
            )
        name = _unquoted(name)
        if not name:
            raise InvalidError(f"{instruction} names can not be blank")
        pairs[name] = _value(value, environment)
    return pairs


def _words(text: str) -> list[str]:
    """Split at blanks outside quotes; quotes and backslashes stay."""
    pieces = re.findall(r"""(?:\\.|"(?:\\.|[^"\\])*"|'[^']*'|[^\s\\"'])+""", text)
    if not pieces or _is_unbalanced(text):
        raise InvalidError(f"unexpected end of statement while looking for matching quote: {text}")
    return pieces


def _is_unbalanced(text: str) -> bool:
    rest = re.sub(r"""\\.|"(?:\\.|[^"\\])*"|'[^']*'""", "", text)
    return '"' in rest or "'" in rest


def _value(text: str, environment: Mapping[str, str]) -> str:
    """Take the quotes off a value; nothing is expanded inside single ones."""
    out: list[str] = []
    for piece in re.findall(r"""'[^']*'|"(?:\\.|[^"\\])*"|(?:\\.|[^"'\\])+""", text):
        if piece.startswith("'"):
            out.append(piece[1:-1])
        elif piece.startswith('"'):
            out.append(re.sub(r'\\(["\\])', r"\1", _expand(piece[1:-1], environment)))
        else:
            out.append(re.sub(r"\\(.)", r"\1", _expand(piece, environment)))
    return "".join(out)


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if is_quoted else text


def _expand(text: str, environment: Mapping[str, str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        if match[0] == r"\$":
            return "$"
        value = environment.get(match["plain"] or match["braced"], "")
        if match["operator"] == "-":
            return value or match["word"]
        if match["operator"] == "+":
            return match["word"] if value else ""
        return value

    return _VARIABLE.sub(replacement, text)

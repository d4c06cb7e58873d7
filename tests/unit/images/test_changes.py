"""`docker import --change`: each instruction does what its line in a Dockerfile does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proto.errors import InvalidError
from worker.images.changes import apply_changes, parse_duration
from worker.images.config import RawConfig, RawHealth


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (['CMD ["a", "b c"]'], {"cmd": ["a", "b c"]}),
        (["cmd a 'b c'"], {"cmd": ["/bin/sh", "-c", "a 'b c'"]}),
        (["CMD [not json"], {"cmd": ["/bin/sh", "-c", "[not json"]}),
        (["CMD a", "CMD"], {"cmd": None}),
        (['ENTRYPOINT ["/x"]'], {"entrypoint": ["/x"]}),
        (["ENTRYPOINT /x $Y"], {"entrypoint": ["/bin/sh", "-c", "/x $Y"]}),
        (["ENV A=1 B='two words' C=\"3 \\\" 4\" D=a\\ b"],
         {"env": ["A=1", "B=two words", 'C=3 " 4', "D=a b"]}),
        (["ENV A some words"], {"env": ["A=some words"]}),
        (["ENV A=1", "ENV B=$A-${A}-${N:-none}-${A:+set}-\\$A", "ENV A=2"],
         {"env": ["A=2", "B=1-1-none-set-$A"]}),
        (["ENV A=1", "ENV B='$A'"], {"env": ["A=1", "B=$A"]}),
        (["ENV EMPTY="], {"env": ["EMPTY="]}),
        (["EXPOSE 80 53/udp", "EXPOSE 8000-8002/TCP"],
         {"exposed_ports": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {},
                            "8002/tcp": {}}}),
        (["ENV P=81", "EXPOSE $P"], {"env": ["P=81"], "exposed_ports": {"81/tcp": {}}}),
        (['LABEL a=1 "b c"="d e"', "LABEL a=2"], {"labels": {"a": "2", "b c": "d e"}}),
        (["USER 1000:1000"], {"user": "1000:1000"}),
        (['VOLUME ["/a", "/b c"]'], {"volumes": {"/a": {}, "/b c": {}}}),
        (["VOLUME /a /b"], {"volumes": {"/a": {}, "/b": {}}}),
        (["WORKDIR /a", "WORKDIR b/../c"], {"working_dir": "/a/c"}),
        (["WORKDIR x"], {"working_dir": "/x"}),
        (["STOPSIGNAL SIGTERM"], {"stop_signal": "SIGTERM"}),
        (["STOPSIGNAL 9"], {"stop_signal": "9"}),
        (["ONBUILD RUN x"], {"on_build": ["RUN x"]}),
        (["HEALTHCHECK NONE"], {"healthcheck": RawHealth(test=["NONE"])}),
        (["HEALTHCHECK CMD curl -f x"],
         {"healthcheck": RawHealth(test=["CMD-SHELL", "curl -f x"])}),
        ([('HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=2s '
          '--start-interval=1s --retries=4 CMD ["c", "d"]')],
         {"healthcheck": RawHealth(test=["CMD", "c", "d"], interval=90_000_000_000,
                                   timeout=500_000_000, start_period=2_000_000_000,
                                   start_interval=1_000_000_000, retries=4)}),
        (["CMD x\nUSER 7\n# a comment\n"], {"cmd": ["/bin/sh", "-c", "x"], "user": "7"}),
    ],
    ids=str,
)  # fmt: skip
def test_instructions(changes: list[str], expected: dict[str, Any]) -> None:
    """Each instruction sets its part, and those after it see what it did."""
    assert RawConfig(**expected) == apply_changes(changes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("RUN x", "run is not a valid change command"),
        ("FROM x", "from is not a valid change command"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", "can't find = in 'B'"),
        ("ENV =1", "ENV names can not be blank"),
        ("LABEL a='1", "matching quote"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ("EXPOSE 0", "invalid containerPort: 0"),
        ("EXPOSE 9-8", "invalid containerPort: 9-8"),
        ("EXPOSE 80/icmp", "invalid containerPort: 80/icmp"),
        ("USER a b", "exactly one argument"),
        ("VOLUME []", "empty string"),
        ('VOLUME [" "]', "empty string"),
        ("STOPSIGNAL no such", "invalid signal"),
        ("ONBUILD ONBUILD RUN x", "isn't allowed as an ONBUILD trigger"),
        ("HEALTHCHECK NONE x", "takes no arguments"),
        ("HEALTHCHECK x", 'Unknown type "x"'),
        ("HEALTHCHECK CMD", "Missing command"),
        ("HEALTHCHECK --interval=x CMD y", 'invalid duration "x"'),
        ("HEALTHCHECK --interval=1us CMD y", "cannot be less than 1ms"),
        ("HEALTHCHECK --retries=0 CMD y", "--retries must be at least 1"),
        ("HEALTHCHECK --what=1 CMD y", "unknown flag: what"),
        ("HEALTHCHECK --interval CMD y", "--interval needs a value"),
    ],
)
def test_refusals(change: str, sentence: str) -> None:
    """A wrong instruction is refused by name."""
    with pytest.raises(InvalidError) as refused:
        apply_changes([change])
    assert sentence in refused.value.message


def test_the_given_configuration_is_not_changed() -> None:
    """Instructions work on a copy."""
    before = RawConfig(env=["A=1"], labels={"a": "1"}, exposed_ports={"1/tcp": {}})
    copy = msgspec.structs.replace(before)
    after = apply_changes(["ENV B=2", "LABEL b=2", "EXPOSE 2"], before)
    assert copy == before
    assert after.env == ["A=1", "B=2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("1h2m3s", 3_723_000_000_000), ("1.5s", 1_500_000_000), ("2us", 2_000), ("7ns", 7)],
)
def test_durations(text: str, expected: int) -> None:
    """Durations are read as Go reads them."""
    assert expected == parse_duration(text)


@pytest.mark.parametrize("text", ["", "s", "1", "1x", "1s2", " 1s", "-1s"])
def test_wrong_durations(text: str) -> None:
    """What is no duration is refused."""
    with pytest.raises(InvalidError):
        parse_duration(text)

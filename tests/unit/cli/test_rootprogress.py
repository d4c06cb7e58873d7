"""What is shown while nodes get certificates of another root."""

from __future__ import annotations

from typing import Any

import pytest

from manager.cli.progress import ProgressDisplay
from manager.cli.rootprogress import NAMES_MAX, missing, observe

OLD = {"TrustRoot": "old", "CertIssuerSubject": "s", "CertIssuerPublicKey": "1"}
NEW = {"TrustRoot": "new", "CertIssuerSubject": "s", "CertIssuerPublicKey": "2"}
BETWEEN = {**NEW, "TrustRoot": "old"}
"""What is wanted, and shown by a node that has renewed, until the old root is dropped."""


def cluster(info: dict[str, str], *, rotating: bool) -> dict[str, Any]:
    """Make a cluster."""
    return {"TLSInfo": info, "RootRotationInProgress": rotating}


def nodes(*infos: dict[str, str]) -> list[dict[str, Any]]:
    """Make nodes that show these."""
    return [{"Description": {"TLSInfo": info}} for info in infos]


@pytest.mark.parametrize(
    "case",
    [
        (BETWEEN, True, (OLD, OLD, {}), 0, 0, False),
        (BETWEEN, True, (BETWEEN, OLD, OLD), 1, 0, False),
        (BETWEEN, True, (BETWEEN, BETWEEN, BETWEEN), 3, 0, False),
        (NEW, False, (BETWEEN, NEW, BETWEEN), 3, 1, False),
        (NEW, False, (NEW, NEW, OLD), 2, 0, False),
        (NEW, False, (NEW, NEW, NEW), 3, 3, True),
    ],
)
def test_the_watch_ends_when_all_show_and_trust_the_new_root(case: Any) -> None:
    """Trust counts only when the old root is gone."""
    wanted, rotating, shown, renewed, trusting, done = case
    step = observe(cluster(wanted, rotating=rotating), nodes(*shown))
    assert step.is_done is done
    assert step.lines[1].text.endswith(f"] {renewed}/3 nodes")
    assert step.lines[2].text.endswith(f"] {trusting}/3 nodes")


def test_the_bars_are_drawn_as_docker_draws_them() -> None:
    """One under the other; elsewhere than on a terminal only the digest is shown, once."""
    lines = observe(cluster(BETWEEN, rotating=True), nodes(BETWEEN, OLD)).lines
    shown = "".join(map(ProgressDisplay(is_terminal=True).show, lines))
    assert f"  rotated TLS certificates:  [{'=' * 25}>{' ' * 25}] 1/2 nodes\n" in shown
    assert f"  rotated CA certificates:   [>{' ' * 50}] 0/2 nodes\n" in shown
    display = ProgressDisplay(is_terminal=False)
    assert "".join(map(display.show, lines)).startswith("desired root digest: sha256:")
    assert "".join(map(display.show, lines)) == ""


def test_the_nodes_that_are_waited_for_are_named() -> None:
    """Those that are down as such: they may have to be removed."""

    def named(name: str, info: dict[str, str], state: str) -> dict[str, Any]:
        description = {"Hostname": name, "TLSInfo": info}
        return {"ID": f"id-{name}", "Description": description, "Status": {"State": state}}

    wanted = cluster(BETWEEN, rotating=True)
    some = [named("c", OLD, "ready"), named("a", OLD, "down"), named("b", BETWEEN, "ready")]
    assert missing(wanted, some) == "a (down), c"
    assert observe(wanted, some).lines[-1].text.strip() == "a (down), c"
    assert not missing(wanted, some[2:])
    many = [named(f"n{number:02}", OLD, "ready") for number in range(NAMES_MAX + 3)]
    assert missing(wanted, many).endswith("n07 and 3 more")
    assert missing(wanted, [{"ID": "x"}]) == "x (unknown)"

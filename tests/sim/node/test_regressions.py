"""Seeds that once failed. Each finds again what it found when the fix it names is undone."""

import pytest

from .simulation import simulate


@pytest.mark.parametrize(
    ("seed", "found"),
    [
        pytest.param(2, "plans made on the committed state", id="orchestrator-spins-for-a-sync"),
        pytest.param(5, "events not taken in between steps", id="cores-reserved-twice"),
        pytest.param(5, "attempts not counted", id="start-first-update-without-a-delay"),
        pytest.param(10, "entries restored twice", id="start-on-a-full-disk"),
        pytest.param(24, "strays removed once only", id="stray-runs-on"),
        pytest.param(28, "statuses dropped as refused", id="full-disk-loses-statuses"),
        pytest.param(124, "removed tasks not waited for", id="two-processes-of-a-slot"),
        pytest.param(143, "ports not allocated for a roll-back", id="roll-back-keeps-the-port"),
        pytest.param(451, "versions placed on the same cores", id="two-versions-on-the-same-cores"),
        pytest.param(1068, "a starting container not withdrawn", id="stopped-while-published"),
        pytest.param(269, "numbers given before others are known", id="host-port-given-twice"),
    ],
)
def test_what_was_found_once_stays_mended(seed, found, tmp_path):
    """The story in which it was found comes to a good end."""
    assert found
    simulate(seed, tmp_path)

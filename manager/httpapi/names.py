"""Names for services that were created without one: `calm_harbour`. Pure."""

from __future__ import annotations

import random

_QUALITY_WORDS = """
amber ample brave brisk calm clear cosy crisp deft early fair fleet fond frank gentle glad grand
hardy honest keen kind light lively lucid mellow merry mild neat noble patient placid proud quick
quiet ready rustic serene sharp sincere smooth snug solid spry steady stout sunny swift tidy vivid
warm
"""
_THING_WORDS = """
anchor arbour beacon birch bridge brook canal cedar cliff comet cove delta dune ember fern fjord
garden glade grove harbour heath hill island lagoon lantern larch maple marsh meadow mill moor oak
orchard otter pebble pier pine pond quarry reef ridge river shore spring summit thicket tower vale
willow
"""
_QUALITIES = _QUALITY_WORDS.split()
_THINGS = _THING_WORDS.split()
_NUMBERS = 10_000


def new_name(rng: random.Random, *, is_numbered: bool) -> str:
    """Draw a name; `is_numbered` makes it longer, for when the short ones were taken."""
    name = f"{rng.choice(_QUALITIES)}_{rng.choice(_THINGS)}"
    return f"{name}_{rng.randrange(_NUMBERS)}" if is_numbered else name

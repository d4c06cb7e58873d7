"""The metadata's rules: names, removal, collection."""

from __future__ import annotations

import pytest

from proto.errors import ConflictError, InvalidError, NotFoundError
from proto.ids import ImageID
from worker.images import removal
from worker.images import state as states
from worker.images.api import Deleted, ImageConfig
from worker.images.references import parse
from worker.images.removal import ImageUse
from worker.images.state import Blob, ImageRecord, LayerRecord, State

A = ImageID("sha256:" + "a" * 64)
B = ImageID("sha256:" + "b" * 64)
L1, L2, L3 = ("sha256:" + digit * 64 for digit in "123")


def layer(name: str) -> LayerRecord:
    """Make a layer's record."""
    return LayerRecord(
        directory=name,
        blob=f"sha256:{name}",
        blob_bytes=1,
        is_gzip=False,
        tar_bytes=1,
        size_bytes=1,
    )


def make(**names: ImageID) -> State:
    """Make a state of two images that share a layer; `names` are tags, `_` stands for `:`."""
    state = State(
        layers={L1: layer("1"), L2: layer("2"), L3: layer("3")},
        images={
            A: ImageRecord(diff_ids=(L1, L2), config_bytes=1),
            B: ImageRecord(diff_ids=(L1, L3), config_bytes=1),
        },
    )
    for name, image in names.items():
        state = states.with_name(state, parse(name.replace("_", ":")), image)
    state.check()
    return state


def digest(state: State, name: str, image: ImageID) -> State:
    """Add a digest reference."""
    return states.with_name(state, parse(f"{name}@sha256:{'d' * 64}"), image)


def test_find() -> None:
    """A tag goes before the beginning of an ID; an ambiguous beginning finds nothing."""
    state = digest(make(web_latest=A, aaaa_latest=B), "web", A)
    found = states.find_image(state, "aaaa")
    assert found is not None
    assert found[0] == B
    for text in ("web", "aaa", "sha256:aaa", A, A[7:], f"web@sha256:{'d' * 64}"):
        match = states.find_image(state, text)
        assert match is not None, text
        assert match[0] == A
    assert states.find_image(state, f"web:1@sha256:{'e' * 64}") is None
    assert states.find_image(state, "sha256:" + "0" * 64) is None
    assert states.find_image(state, "c") is None
    other = ImageID("sha256:ab" + "0" * 62)
    both = states.with_image(state, other, ImageRecord(diff_ids=(), config_bytes=1))
    assert states.find_image(both, "a") is None
    with pytest.raises(InvalidError, match="invalid reference format"):
        states.find_image(state, "")


def test_last_name_takes_the_image() -> None:
    """The last tag of a repository takes its digests along, and the last name the image."""
    state = digest(make(web_1=A, other_1=A), "web", A)
    first = removal.remove(state, "web:1", force=False, in_use=())
    assert first.deleted == (
        Deleted(untagged="web:1"),
        Deleted(untagged=f"web@sha256:{'d' * 64}"),
    )
    assert A in first.state.images
    second = removal.remove(first.state, "other:1", force=False, in_use=())
    assert second.deleted == (Deleted(untagged="other:1"), Deleted(deleted=A))
    collected, garbage = states.collected(second.state, ())
    assert garbage.diff_ids == (L2,)
    collected.check()


def test_by_id() -> None:
    """By ID an image goes with its one tag and that repository's digests; two tags need force."""
    single = digest(make(web_1=A), "web", A)
    gone = removal.remove(single, "aaaa", force=False, in_use=())
    assert [each.untagged for each in gone.deleted] == ["web:1", f"web@sha256:{'d' * 64}", ""]
    for state in (make(web_1=A, web_2=A), digest(make(web_1=A), "other", A)):
        with pytest.raises(ConflictError) as refused:
            removal.remove(state, A, force=False, in_use=())
        assert refused.value.message == (
            "conflict: unable to delete aaaaaaaaaaaa (must be forced) - "
            "image is referenced in multiple repositories"
        )
        forced = removal.remove(state, A, force=True, in_use=())
        assert A not in forced.state.images
        forced.state.check()


def test_in_use() -> None:
    """A container's image stays, a stopped one's yields to force, and sentences name it."""
    running = {A: ImageUse(container_id="c" * 64)}
    stopped = {A: ImageUse(container_id="c" * 64, is_running=False)}
    state = make(web_1=A)
    for use in (running, stopped):
        with pytest.raises(ConflictError) as refused:
            removal.remove(state, "web:1", force=False, in_use=use)
        assert refused.value.message == (
            'conflict: unable to remove repository reference "web:1" (must force) - '
            "container cccccccccccc is using its referenced image aaaaaaaaaaaa"
        )
    with pytest.raises(ConflictError, match=r"by running container cccccccccccc$"):
        removal.remove(state, A, force=True, in_use=running)
    with pytest.raises(ConflictError, match=r"\(cannot be forced\).* by a running container$"):
        removal.remove(state, A, force=True, in_use=[A])
    with pytest.raises(ConflictError, match=r"\(must be forced\).* by stopped container ccc"):
        removal.remove(state, A, force=False, in_use=stopped)
    # Only the name of a running one's image can go, by force.
    untagged = removal.remove(state, "web:1", force=True, in_use=running)
    assert untagged.deleted == (Deleted(untagged="web:1"),)
    assert not untagged.state.images[A].is_hidden
    # One of several names goes without force.
    assert removal.remove(make(web_1=A, web_2=A), "web:1", force=False, in_use=running).deleted == (
        Deleted(untagged="web:1"),
    )
    hidden = removal.remove(state, "web:1", force=True, in_use=stopped).state
    assert states.find_image(hidden, A) is None
    assert states.collected(hidden, ())[1].diff_ids == ()
    hidden.check()
    assert A in states.without_hidden(hidden, stopped).images
    assert A not in states.without_hidden(hidden, {}).images
    assert states.without_hidden(hidden, stopped) is hidden


def test_missing() -> None:
    """What is not there is named as Docker names it."""
    with pytest.raises(NotFoundError, match=r"^No such image: nothing:latest$"):
        removal.remove(make(), "nothing", force=True, in_use=())


def test_pins_keep_layers() -> None:
    """A layer that work in progress has pinned is not collected."""
    state = states.without_image(make(), A, keep_layers=False)
    assert states.collected(state, {L2})[1].diff_ids == ()
    assert states.collected(state, {L3})[1].diff_ids == (L2,)


def test_needed_blobs() -> None:
    """All that the state names is needed: layers, configurations, manifests and their blobs."""
    record = ImageRecord(diff_ids=(L1,), config_bytes=1, manifest="m", blobs=(Blob("x", 1),))
    state = states.with_image(make(), A, record)
    assert states.needed_blobs(state) == {"sha256:1", "sha256:2", "sha256:3", A, B, "m", "x"}
    # Loaded again without a manifest, the image keeps the one it had.
    again = states.with_image(state, A, ImageRecord(diff_ids=(L1,), config_bytes=1))
    assert again.images[A].manifest == "m"


def test_stored_form() -> None:
    """The metadata comes back as they were; another version is refused."""
    state = digest(make(web_1=A), "web", A)
    assert states.decode(states.encode(state)) == state
    for data in (b"", b"{", b'{"version": 2}', b'{"images": 1}'):
        with pytest.raises(InvalidError):
            states.decode(data)


def test_directory_names() -> None:
    """Directories have 12 digits, more only where two layers begin alike."""
    assert states.directory_name(L1, ()) == "1" * 12
    assert states.directory_name(L1, {"1" * 12}) == "1" * 13


def test_a_layer_that_comes_twice_is_mounted_once() -> None:
    """Of equal layers the topmost one counts."""
    assert states.overlay_order((L1, L2, L1, L3)) == [L2, L1, L3]


def test_prune_filters() -> None:
    """Filters are read as the Engine API has them."""
    config = ImageConfig(labels={"a": "1"})

    def takes(created: float = 900.0, **filters: list[str]) -> bool:
        named = {name.replace("_not", "!"): values for name, values in filters.items()}
        return removal.parse_filters(named, now=1000.0).takes(created, config)

    assert takes()
    assert takes(until=["99s"])
    assert not takes(until=["101s"])
    assert takes(until=["901"])
    assert not takes(until=["900"])
    assert takes(until=["1970-01-01T00:15:01Z"])
    assert takes(label=["a"])
    assert takes(label=["a=1"])
    assert not takes(label=["a", "b"])
    assert not takes(label=["a=2"])
    assert not takes(label_not=["a=1"])
    assert takes(label_not=["a=2"])
    with pytest.raises(InvalidError, match="invalid filter 'what'"):
        takes(what=["x"])
    with pytest.raises(InvalidError, match="more than one until"):
        takes(until=["1s", "2s"])
    with pytest.raises(InvalidError, match="invalid duration"):
        takes(until=["soon"])

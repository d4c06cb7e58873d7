"""Docker's filters."""

from __future__ import annotations

import pytest

from manager.httpapi.filters import (
    IMAGE_FILTERS,
    NODE_FILTERS,
    SERVICE_FILTERS,
    TASK_FILTERS,
    ImageBounds,
    TaskFacts,
    duration_seconds,
    flag_of,
    is_up_to_date,
    matches_labels,
    matching_tags,
    parse_filters,
    select_images,
    select_nodes,
    select_services,
    select_tasks,
)
from proto.errors import InvalidError
from proto.ids import ImageID, NodeID, ServiceID, TaskID
from proto.objects import (
    ContainerSpec,
    EndpointSpec,
    EngineDescription,
    GlobalMode,
    Node,
    NodeDescription,
    NodeRole,
    NodeSpec,
    PortConfig,
    ReplicatedJobMode,
    ReplicatedMode,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
)
from proto.states import TaskState
from worker.images.api import Image, ImageConfig


@pytest.mark.parametrize(
    "text",
    ['{"name":["web","db"]}', '{"name":{"web":true,"db":true,"old":false}}'],
)
def test_both_encodings_mean_the_same(text: str) -> None:
    """Old clients send maps, new ones lists."""
    assert parse_filters(text, SERVICE_FILTERS) == {"name": ("db", "web")}


def test_an_unknown_filter_is_refused_by_name() -> None:
    """The sentence is the Engine's."""
    with pytest.raises(InvalidError, match=r"^invalid filter 'color'$"):
        parse_filters('{"color":["red"]}', NODE_FILTERS)


@pytest.mark.parametrize("text", ["name=web", "[]", '{"name":"web"}', '{"name":[1]}'])
def test_what_is_no_filter_is_refused(text: str) -> None:
    """A filter that cannot be read must not select everything."""
    with pytest.raises(InvalidError, match="invalid filter"):
        parse_filters(text, SERVICE_FILTERS)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [((), True), (("a",), True), (("a=1",), True), (("a=2",), False), (("a=1", "b"), False)],
)
def test_labels_must_all_match(wanted: tuple[str, ...], expected: bool) -> None:  # noqa: FBT001 -- a case
    """`key` asks for presence, `key=value` for the value."""
    assert expected == matches_labels({"a": "1"}, wanted)


NODES = [
    Node(
        id=NodeID("n1aa"),
        role=NodeRole.MANAGER,
        spec=NodeSpec(labels={"zone": "a"}),
        description=NodeDescription(
            hostname="wkr01", engine=EngineDescription(labels={"disk": "ssd"})
        ),
    ),
    Node(id=NodeID("n2bb"), description=NodeDescription(hostname="wkr02")),
]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["n1aa", "n2bb"]),
        ({"id": ("n1",)}, ["n1aa"]),
        ({"name": ("wkr",)}, ["n1aa", "n2bb"]),
        ({"name": ("wkr02",)}, ["n2bb"]),
        ({"role": ("worker",)}, ["n2bb"]),
        ({"role": ("manager", "worker")}, ["n1aa", "n2bb"]),
        ({"label": ("disk=ssd",)}, ["n1aa"]),
        ({"node.label": ("zone",)}, ["n1aa"]),
        ({"membership": ("pending",)}, []),
        ({"role": ("manager",), "name": ("wkr02",)}, []),
    ],
)
def test_nodes_match_all_names_and_any_value(
    filters: dict[str, tuple[str, ...]], expected: list[str]
) -> None:
    """Values of one filter are alternatives, filters add up."""
    assert expected == [node.id for node in select_nodes(NODES, filters)]


def test_an_unknown_role_is_refused() -> None:
    """An empty list would look like an answer."""
    with pytest.raises(InvalidError, match="'role=king': use manager or worker"):
        select_nodes(NODES, {"role": ("king",)})


SERVICES = [
    Service(
        id=ServiceID("s1"),
        spec=ServiceSpec(name="web", mode=ReplicatedMode(), labels={"tier": "front"}),
    ),
    Service(id=ServiceID("s2"), spec=ServiceSpec(name="web-log", mode=GlobalMode())),
]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"name": ("web",)}, ["s1", "s2"]),
        ({"name": ("web-",)}, ["s2"]),
        ({"mode": ("global",)}, ["s2"]),
        ({"label": ("tier=front",)}, ["s1"]),
        ({"id": ("s2",)}, ["s2"]),
        ({"runtime": ("plugin",)}, []),
    ],
)
def test_services_match(filters: dict[str, tuple[str, ...]], expected: list[str]) -> None:
    """Names match by their beginning, as in the Engine."""
    assert expected == [service.id for service in select_services(SERVICES, filters)]


TASKS = [
    Task(id=TaskID("t1"), service_id=ServiceID("s1"), slot=1, node_id=NodeID("n1aa")),
    Task(
        id=TaskID("t2"),
        service_id=ServiceID("s1"),
        slot=2,
        node_id=NodeID("n2bb"),
        desired_state=TaskState.SHUTDOWN,
    ),
]
FACTS = TaskFacts(
    name_of=lambda task: f"web.{task.slot}.{task.id}",
    labels_of=lambda _: {"team": "x"},
    is_up_to_date=lambda task: task.id == "t1",
    service_ids=frozenset({ServiceID("s1")}),
    node_ids=frozenset({NodeID("n2bb")}),
)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"service": ("web",)}, ["t1", "t2"]),
        ({"node": ("wkr02",)}, ["t2"]),
        ({"desired-state": ("running",)}, ["t1"]),
        ({"desired-state": ("shutdown", "running")}, ["t1", "t2"]),
        ({"name": ("web.2",)}, ["t2"]),
        ({"label": ("team",)}, ["t1", "t2"]),
        ({"_up-to-date": ("true",)}, ["t1"]),
        ({"_up-to-date": ("false",)}, ["t1", "t2"]),
        ({"runtime": ("container",)}, ["t1", "t2"]),
        ({"runtime": ("plugin",)}, []),
    ],
)
def test_tasks_match(filters: dict[str, tuple[str, ...]], expected: list[str]) -> None:
    """Services and nodes come resolved to IDs."""
    assert set(filters) <= TASK_FILTERS
    assert expected == [task.id for task in select_tasks(TASKS, filters, FACTS)]


def test_a_scaled_services_old_tasks_are_up_to_date() -> None:
    """More replicas make a new version of the spec and leave the tasks as they are."""
    task = Task(id=TaskID("t"), spec_version=1)
    old = ServiceSpec(mode=ReplicatedMode(replicas=1))
    service = Service(
        id=ServiceID("s"), spec=ServiceSpec(mode=ReplicatedMode(replicas=9)), spec_version=2
    )
    assert is_up_to_date(task, old, service)


@pytest.mark.parametrize(
    "spec",
    [
        ServiceSpec(task=TaskSpec(container=ContainerSpec(image="new"))),
        ServiceSpec(endpoint=EndpointSpec(ports=(PortConfig(target_port=80),))),
    ],
)
def test_a_task_of_another_image_or_port_is_not_up_to_date(spec: ServiceSpec) -> None:
    """What the container has of the spec decides."""
    service = Service(id=ServiceID("s"), spec=spec, spec_version=2)
    assert not is_up_to_date(Task(id=TaskID("t"), spec_version=1), ServiceSpec(), service)


def test_an_earlier_run_of_a_job_is_not_up_to_date() -> None:
    """Each version of a job is a run of its own."""
    spec = ServiceSpec(mode=ReplicatedJobMode())
    service = Service(id=ServiceID("s"), spec=spec, spec_version=2)
    assert not is_up_to_date(Task(id=TaskID("t"), spec_version=1), spec, service)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("busybox", True),
        ("busybox:1.36", True),
        ("busybox:1.*", True),
        ("busy*", True),
        ("busy*:1.*", True),
        ("busybox:2", False),
        ("box", False),
        ("*/busybox", False),
    ],
)
def test_references_match_names_tags_and_globs(pattern: str, expected: bool) -> None:  # noqa: FBT001 -- a case
    """A pattern without a tag matches every tag; a star stays within a path component."""
    assert expected == bool(matching_tags(("busybox:1.36",), (pattern,)))


def test_a_star_does_not_cross_a_slash() -> None:
    """`*` alone is not every repository of every registry."""
    names = ("registry:5000/team/web:1",)
    assert matching_tags(names, ("*",)) == ()
    assert matching_tags(names, ("registry:5000/*/web",)) == names


IMAGES = [
    Image(id=ImageID("old"), repo_tags=("a:1",), created=10.0),
    Image(id=ImageID("new"), created=30.0, config=ImageConfig(labels={"k": "v"})),
    Image(id=ImageID("mid"), repo_tags=("b:1",), created=20.0),
]


@pytest.mark.parametrize(
    ("filters", "bounds", "expected"),
    [
        ({}, ImageBounds(), ["new", "mid", "old"]),
        ({"dangling": ("true",)}, ImageBounds(), ["new"]),
        ({"dangling": ("false",)}, ImageBounds(), ["mid", "old"]),
        ({"label": ("k=v",)}, ImageBounds(), ["new"]),
        ({"label!": ("k",)}, ImageBounds(), ["mid", "old"]),
        ({"reference": ("a",)}, ImageBounds(), ["old"]),
        ({}, ImageBounds(before=20.0), ["old"]),
        ({}, ImageBounds(since=10.0), ["new", "mid"]),
    ],
)
def test_images_match_newest_first(
    filters: dict[str, tuple[str, ...]], bounds: ImageBounds, expected: list[str]
) -> None:
    """Bounds leave the bound itself out."""
    assert set(filters) <= IMAGE_FILTERS
    assert expected == [image.id for image in select_images(IMAGES, filters, bounds)]


def test_an_image_found_by_reference_shows_the_names_that_match() -> None:
    """`image ls mini:2` has one line, whatever other names the image has."""
    image = Image(
        id=ImageID("i"),
        repo_tags=("mini:1", "mini:2"),
        repo_digests=("mini@sha256:0", "x@sha256:0"),
    )
    (found,) = select_images([image], {"reference": ("mini:2",)}, ImageBounds())
    assert (found.repo_tags, found.repo_digests) == (("mini:2",), ())
    (found,) = select_images([image], {"reference": ("mini",)}, ImageBounds())
    assert (found.repo_tags, found.repo_digests) == (("mini:1", "mini:2"), ("mini@sha256:0",))


def test_a_flag_that_is_neither_is_refused() -> None:
    """`dangling=maybe` is a mistake, not false."""
    with pytest.raises(InvalidError, match="dangling=maybe"):
        flag_of({"dangling": ("maybe",)}, "dangling", default=True)


@pytest.mark.parametrize(
    ("text", "expected"), [("1h30m", 5400.0), ("90s", 90.0), ("500ms", 0.5), ("10", None)]
)
def test_durations_are_gos(text: str, expected: float | None) -> None:
    """What is no duration is left to be read as a moment."""
    assert expected == duration_seconds(text)

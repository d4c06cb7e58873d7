"""The fields that the Engine leaves out of its JSON when they are empty.

Pure. In Docker's client `{{.Spec.Labels}}` of an object without labels is an empty map, because Go
decodes JSON into structs. Here a shape says which fields there are: `shaped` lays an object over
it, so that a template finds a zero value where the JSON has nothing; `original` gives back what
the Engine sent, for `{{json .}}`. `None` stands for a pointer: a template may ask whether it is
there, and looking inside is an error, as in Go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proto.gotemplate import Struct


class Pointer:
    """A shape that holds only where the Engine gave the field at all."""

    def __init__(self, shape: Mapping[str, object]) -> None:
        """Keep the shape of what it points to."""
        self.shape = shape


class ListOf:
    """A list whose members have a shape."""

    def __init__(self, shape: Mapping[str, object]) -> None:
        """Keep the shape of a member."""
        self.shape = shape


class Shaped(Struct):
    """An object over its shape."""

    def __init__(self, fields: Mapping[str, object], original: object) -> None:
        """Keep what the Engine sent beside the fields."""
        super().__init__(fields)
        self.original = original


class Absent(list[object]):
    """A list that the Engine left out: empty, and `null` in JSON."""


TEXT: Final = ""
MAP: Final[Mapping[str, object]] = {}
LIST: Final[tuple[object, ...]] = ()

_META = {"ID": TEXT, "Version": {"Index": 0}, "CreatedAt": TEXT, "UpdatedAt": TEXT}
_PORT = {"Name": TEXT, "Protocol": TEXT, "TargetPort": 0, "PublishedPort": 0, "PublishMode": TEXT}
_TLS = {"TrustRoot": TEXT, "CertIssuerSubject": TEXT, "CertIssuerPublicKey": TEXT}
_DRIVER = {"Name": TEXT, "Options": MAP}
_FILE = Pointer({"Name": TEXT, "UID": TEXT, "GID": TEXT, "Mode": 0})
_MOUNT = {
    "Type": TEXT,
    "Source": TEXT,
    "Target": TEXT,
    "ReadOnly": False,
    "Consistency": TEXT,
    "BindOptions": None,
    "VolumeOptions": None,
    "TmpfsOptions": None,
}
_HEALTH = {
    "Test": LIST,
    "Interval": 0,
    "Timeout": 0,
    "StartPeriod": 0,
    "StartInterval": 0,
    "Retries": 0,
}
_UPDATE = {
    "Parallelism": 0,
    "Delay": 0,
    "FailureAction": TEXT,
    "Monitor": 0,
    "MaxFailureRatio": 0,
    "Order": TEXT,
}
_CONTAINER = {
    **dict.fromkeys(("Image", "Hostname", "Dir", "User", "StopSignal", "Isolation"), TEXT),
    **dict.fromkeys(("Labels", "Sysctls"), MAP),
    **dict.fromkeys(
        ("Command", "Args", "Env", "Groups", "Hosts", "CapabilityAdd", "CapabilityDrop"), LIST
    ),
    **dict.fromkeys(("Init", "StopGracePeriod", "Privileges"), None),
    **dict.fromkeys(("TTY", "OpenStdin", "ReadOnly"), False),
    "OomScoreAdj": 0,
    "Ulimits": LIST,
    "Mounts": ListOf(_MOUNT),
    "Healthcheck": Pointer(_HEALTH),
    "DNSConfig": Pointer({"Nameservers": LIST, "Search": LIST, "Options": LIST}),
    "Secrets": ListOf({"File": _FILE, "SecretID": TEXT, "SecretName": TEXT}),
    "Configs": ListOf({"File": _FILE, "Runtime": None, "ConfigID": TEXT, "ConfigName": TEXT}),
}
_TASK_SPEC = {
    "ContainerSpec": Pointer(_CONTAINER),
    "Resources": Pointer(
        {
            "Limits": Pointer({"NanoCPUs": 0, "MemoryBytes": 0, "Pids": 0}),
            "Reservations": Pointer({"NanoCPUs": 0, "MemoryBytes": 0, "GenericResources": LIST}),
        }
    ),
    "RestartPolicy": Pointer(
        {"Condition": TEXT, "Delay": None, "MaxAttempts": None, "Window": None}
    ),
    "Placement": Pointer(
        {"Constraints": LIST, "Preferences": LIST, "MaxReplicas": 0, "Platforms": LIST}
    ),
    "Networks": ListOf({"Target": TEXT, "Aliases": LIST, "DriverOpts": MAP}),
    "LogDriver": Pointer(_DRIVER),
    "ForceUpdate": 0,
    "Runtime": TEXT,
}
_SERVICE_SPEC = {
    "Name": TEXT,
    "Labels": MAP,
    "TaskTemplate": _TASK_SPEC,
    "Mode": dict.fromkeys(("Replicated", "Global", "ReplicatedJob", "GlobalJob")),
    "UpdateConfig": Pointer(_UPDATE),
    "RollbackConfig": Pointer(_UPDATE),
    "EndpointSpec": Pointer({"Mode": TEXT, "Ports": ListOf(_PORT)}),
}

SERVICE: Mapping[str, object] = {
    **_META,
    "Spec": _SERVICE_SPEC,
    "PreviousSpec": Pointer(_SERVICE_SPEC),
    "Endpoint": {
        "Spec": {"Mode": TEXT, "Ports": ListOf(_PORT)},
        "Ports": ListOf(_PORT),
        "VirtualIPs": ListOf({"NetworkID": TEXT, "Addr": TEXT}),
    },
    "UpdateStatus": Pointer(
        {"State": TEXT, "StartedAt": None, "CompletedAt": None, "Message": TEXT}
    ),
    "ServiceStatus": None,
    "JobStatus": None,
}
"""What `service inspect` has."""

NODE: Mapping[str, object] = {
    **_META,
    "Spec": {"Name": TEXT, "Labels": MAP, "Role": TEXT, "Availability": TEXT},
    "Description": {
        "Hostname": TEXT,
        "Platform": {"Architecture": TEXT, "OS": TEXT},
        "Resources": {"NanoCPUs": 0, "MemoryBytes": 0, "GenericResources": LIST},
        "Engine": {"EngineVersion": TEXT, "Labels": MAP, "Plugins": LIST},
        "TLSInfo": _TLS,
    },
    "Status": {"State": TEXT, "Message": TEXT, "Addr": TEXT},
    "ManagerStatus": Pointer({"Leader": False, "Reachability": TEXT, "Addr": TEXT}),
}
"""What `node inspect` has."""

IMAGE: Mapping[str, object] = {
    **dict.fromkeys(("Id", "Parent", "Comment", "Created", "Author"), TEXT),
    **dict.fromkeys(("Architecture", "Variant", "Os", "OsVersion", "DockerVersion"), TEXT),
    "RepoTags": LIST,
    "RepoDigests": LIST,
    "Config": Pointer(
        {
            **dict.fromkeys(("User", "WorkingDir", "StopSignal"), TEXT),
            **dict.fromkeys(("ExposedPorts", "Volumes", "Labels"), MAP),
            **dict.fromkeys(("Env", "Cmd", "Entrypoint", "OnBuild", "Shell"), LIST),
            "Healthcheck": Pointer(_HEALTH),
        }
    ),
    "Size": 0,
    "RootFS": {"Type": TEXT, "Layers": LIST},
    "Metadata": {"LastTagTime": TEXT},
}
"""What `image inspect` has."""

ANYTHING: Mapping[str, object] = {}
"""No fields known in advance."""


def shaped(value: object, shape: object) -> object:
    """Lay a value over its shape; what the shape does not know stays as it is."""
    if isinstance(shape, Pointer):
        return None if value is None else shaped(value, shape.shape)
    if isinstance(shape, ListOf):
        if not isinstance(value, list):
            return Absent()
        return [shaped(item, shape.shape) for item in value]
    if isinstance(shape, Mapping) and shape:
        given = value if isinstance(value, Mapping) else {}
        fields = {name: shaped(given.get(name), inner) for name, inner in shape.items()}
        extra = {name: item for name, item in given.items() if name not in shape}
        return Shaped({**fields, **extra}, given)
    if value is None:
        return Absent() if isinstance(shape, tuple) else shape
    return value


def original(value: object) -> object:
    """Take the shapes off again."""
    if isinstance(value, (Shaped, Absent)):
        return value.original if isinstance(value, Shaped) else None
    return [original(item) for item in value] if isinstance(value, list) else value

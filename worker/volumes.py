"""Keeps this node's volumes: directories under the state directory, with what is known of them.

    <state>/volumes/<name>/_data         what containers see
    <state>/volumes/<name>/volume.json   labels, options, owner; written last
    <state>/volumes/<name>/filling       a mark: its first content is not complete (worker.files)

Only the `local` driver exists. Its options `type=none,o=bind,device=/path` make the volume another
name of a directory of the host, as in Docker; other file systems would need a mount in the host's
namespace, which this program never makes, and are refused. A directory without `volume.json` is the
rest of an interrupted creation: it is completed by the next creation, or swept away. A volume that
is removed gets another name, `.gone-…`, before its content is deleted.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import secrets
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import msgspec
import structlog

from disk.replace import replace_file, sync_directory
from proto.errors import ConflictError, InvalidError, NotFoundError, RuntimeFailedError
from proto.ids import ContainerID
from worker.container import VolumePath, VolumeRequest
from worker.files import tree
from worker.runtime.api import ContainerMount

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()

NOBODY = ContainerID("")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_RECORD = "volume.json"
DATA = "_data"
# No volume's name begins with a dot.
_DELETING = ".gone-"
_NAME_LENGTH_MAX = 255


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume of this node; `owner` is the container that an anonymous one goes with."""

    name: str
    mountpoint: str = ""
    driver: str = "local"
    labels: Mapping[str, str] = {}
    options: Mapping[str, str] = {}
    created_at: float = 0.0
    owner: ContainerID = NOBODY


class VolumeStore:
    """The volumes below one directory. Nothing is cached: the disk is the truth."""

    def __init__(self, state_dir: Path) -> None:
        """Use `<state_dir>/volumes`, made when first needed."""
        self._root = state_dir / "volumes"
        # Those whose record cannot be read, of which the log was told.
        self._damaged: set[str] = set()

    def create(
        self,
        name: str,
        *,
        now: float,
        driver: str = "",
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        owner: ContainerID = NOBODY,
    ) -> Volume:
        """Return the volume, made if it does not exist.

        Raises:
            InvalidError: a bad name, an unknown driver, an option that cannot be honoured.
            ConflictError: it exists with other options.
            RuntimeFailedError: the disk refuses.
        """
        if not _NAME.fullmatch(name) or len(name) > _NAME_LENGTH_MAX:
            message = (
                f'volume name "{name}" is invalid: it needs two characters or more of '
                "[a-zA-Z0-9_.-], the first a letter or digit; for a host path use a bind mount"
            )
            raise InvalidError(message)
        if driver not in {"", "local"}:
            message = (
                f'volume driver "{driver}" is not available on this node (volume {name}); '
                "only local is"
            )
            raise InvalidError(message)
        _check_options(name, options or {})
        existing = self._read(name)
        if existing is not None:
            if options and dict(options) != dict(existing.options):
                message = f"volume {name} exists already with other options; remove it first"
                raise ConflictError(message)
            return existing
        volume = Volume(
            name=name,
            mountpoint=str(self._root / name / DATA),
            labels=labels or {},
            options=options or {},
            created_at=now,
            owner=owner,
        )
        self._write(volume)
        return volume

    def resolve(self, request: VolumeRequest, owner: ContainerID, now: float) -> VolumePath:
        """Make what a container's mount asks for and return the volume's directory.

        A subpath is no business of this store: it is resolved when it is mounted.

        Raises:
            InvalidError: see `create`.
        """
        volume = self.create(
            request.name,
            now=now,
            driver=request.driver,
            labels=request.labels,
            options=request.options,
            owner=owner if request.is_anonymous else NOBODY,
        )
        return VolumePath(path=str(self.path_of(volume)), record=str(self._root / volume.name))

    def kept_inside(self, mount: ContainerMount) -> ContainerMount:
        """Return a mount that cannot leave the volume in whose content its source is.

        Whoever binds a path of the host may name one inside of a volume. A container that has the
        volume then decides what the path means, so it counts as a subpath of the volume.
        """
        parts = PurePosixPath(posixpath.normpath(mount.source)).parts
        top = (*PurePosixPath(self._root).parts, "", DATA)
        inside = len(top)
        if len(parts) <= inside or parts[: inside - 2] != top[:-2] or parts[inside - 1] != DATA:
            return mount
        return msgspec.structs.replace(
            mount,
            source=str(PurePosixPath(*parts[:inside])),
            subpath=str(PurePosixPath(*parts[inside:], mount.subpath)),
            fill_record="",
        )

    def path_of(self, volume: Volume) -> Path:
        """Return the directory that containers see."""
        return Path(volume.options.get("device") or volume.mountpoint)

    def all(self) -> list[Volume]:
        """Return all volumes whose record can be read, sorted by name.

        A damaged record harms its own volume only, which says so when it is asked for.
        """
        found = []
        for directory in sorted(self._directories()):
            if not _NAME.fullmatch(directory.name):
                continue
            try:
                volume = self._read(directory.name)
            except RuntimeFailedError as error:
                if directory.name not in self._damaged:
                    self._damaged.add(directory.name)
                    log.warning("volume_damaged", volume=directory.name, error=error.message)
                continue
            if volume is not None:
                found.append(volume)
        return found

    def inspect(self, name: str) -> Volume:
        """Return one volume.

        Raises:
            NotFoundError: there is none of this name.
        """
        volume = self._read(name) if _NAME.fullmatch(name) else None
        if volume is None:
            raise NotFoundError("volume", name, f"get {name}: no such volume")
        return volume

    def remove(self, name: str) -> None:
        """Delete a volume and its content (not that of a `device`). The caller knows who uses it.

        Raises:
            NotFoundError: there is none of this name.
            RuntimeFailedError: the disk refuses.
        """
        self.delete(self.set_aside(name))

    def set_aside(self, name: str) -> Path:
        """Take a volume away in one step, its content for `delete`; return where that is now.

        Quick. Whoever asks for the name from now on makes another volume, so that nobody writes
        into what is being deleted.

        Raises:
            NotFoundError: there is none of this name.
            RuntimeFailedError: the disk refuses, and the volume is as it was.
        """
        try:
            self.inspect(name)
        except RuntimeFailedError as error:
            # Nobody can use it with a damaged record; to remove it is the way out.
            log.warning("damaged_volume_removed", volume=name, error=error.message)
        self._damaged.discard(name)
        aside = self._root / f"{_DELETING}{secrets.token_hex(8)}"
        try:
            (self._root / name).rename(aside)
        except OSError as error:
            raise RuntimeFailedError(f"cannot remove volume {name}: {error}") from error
        return aside

    def delete(self, aside: Path) -> None:
        """Delete the content of a volume that was set aside. Blocks.

        Raises:
            RuntimeFailedError: the disk refuses; `sweep` tries again.
        """
        try:
            tree.remove(aside)
        except OSError as error:
            message = (
                f"the content of a removed volume, {aside}, cannot be deleted: {error.strerror}; "
                "it is tried again when the daemon starts"
            )
            raise RuntimeFailedError(message) from error

    def owned_by(self, owner: ContainerID) -> list[Volume]:
        """Return the anonymous volumes of a container, sorted by name."""
        assert owner
        return [volume for volume in self.all() if volume.owner == owner]

    def remove_owned(self, owner: ContainerID) -> None:
        """Remove the anonymous volumes of a container."""
        for volume in self.owned_by(owner):
            self.remove(volume.name)

    def has_rests(self) -> bool:
        """Whether there is anything for `sweep`."""
        return any(not (rest / _RECORD).exists() or _is_rest(rest) for rest in self._directories())

    def _directories(self) -> list[Path]:
        return list(self._root.iterdir()) if self._root.is_dir() else []

    def sweep(self) -> None:
        """Remove what interrupted creations and removals left. Blocks.

        What cannot be removed is logged and stays: no daemon fails to start for it.
        """
        for directory in self._directories():
            if _is_rest(directory):
                try:
                    self.delete(directory)
                except RuntimeFailedError as error:
                    log.warning("volume_rest_not_removed", error=error.message)
                continue
            if (directory / _RECORD).exists():
                continue
            # Whatever has content, lost its record in another way and is not ours to delete.
            with contextlib.suppress(OSError):
                (directory / (_RECORD + ".new")).unlink(missing_ok=True)
                if (directory / DATA).exists():
                    (directory / DATA).rmdir()
                directory.rmdir()

    def _read(self, name: str) -> Volume | None:
        record = self._root / name / _RECORD
        try:
            return msgspec.json.decode(record.read_bytes(), type=Volume)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.MsgspecError) as error:
            message = (
                f"volume {name}: its record {record} cannot be read ({error}): what is written in "
                f"it lies in {self._root / name / DATA}; put the record back, or remove the volume "
                f"(swarm volume rm {name})"
            )
            raise RuntimeFailedError(message) from error

    def _write(self, volume: Volume) -> None:
        directory = self._root / volume.name
        try:
            self._root.mkdir(mode=0o701, parents=True, exist_ok=True)
            directory.mkdir(mode=0o701, exist_ok=True)
            (directory / DATA).mkdir(mode=0o755, exist_ok=True)
            replace_file(directory / _RECORD, msgspec.json.encode(volume), mode=0o644)
            sync_directory(self._root)
        except OSError as error:
            raise RuntimeFailedError(f"cannot make volume {volume.name}: {error}") from error


def _is_rest(directory: Path) -> bool:
    """Whether a directory is what is left of a volume that was removed."""
    return directory.name.startswith(_DELETING)


def _check_options(name: str, options: Mapping[str, str]) -> None:
    """Accept no options, or a bind of a directory of the host."""
    if not options:
        return
    unknown = sorted(options.keys() - {"type", "o", "device"})
    if unknown:
        raise InvalidError(f'volume {name}: invalid option "{unknown[0]}" for the local driver')
    flags = set(filter(None, options.get("o", "").split(",")))
    is_bind = options.get("type", "none") in {"none", "bind", ""} and flags <= {"bind", "rbind"}
    if not is_bind or not flags:
        message = (
            f"volume {name}: the local driver of this node binds directories only "
            "(type=none,o=bind,device=/path); mount other file systems on the host first"
        )
        raise InvalidError(message)
    device = options.get("device", "")
    if not device.startswith("/") or not Path(device).is_dir():
        raise InvalidError(f'volume {name}: device "{device}" is no directory of this node')

"""`swarm image …`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from manager.cli.commands import common
from manager.cli.errors import CommandError, DaemonError
from manager.cli.flags import Flag, Flags, grouped
from manager.cli.program import Console, Spec
from manager.cli.references import Reference, parse_reference
from manager.cli.transport import filters, quoted
from manager.cli.units import human_size


def _list(console: Console, flags: Flags, arguments: list[str]) -> None:
    from manager.cli.format_image import DIGEST_VIEW, VIEW, image_rows  # noqa: PLC0415 -- only here
    from manager.cli.views import render  # noqa: PLC0415 -- only here

    more = {"reference": arguments} if arguments else {}
    query = {
        "all": "1" if flags.is_on("all") else None,
        "filters": common.filters_of(flags, **more),
    }
    form = flags.text("format")
    with_digests = flags.is_on("digests") or "{{.Digest}}" in form
    rows = image_rows(
        console.engine.get("/images/json", query),
        now=console.now,
        truncate=not flags.is_on("no-trunc"),
        with_digests=with_digests,
    )
    view = DIGEST_VIEW if flags.is_on("digests") else VIEW
    console.write(render(view, rows, form, quiet=flags.is_on("quiet")))


def _inspect(console: Console, flags: Flags, arguments: list[str]) -> None:
    from manager.cli.shapes import IMAGE  # noqa: PLC0415 -- only here

    def fetch(reference: str) -> Any:
        return console.engine.get(f"/images/{quoted(reference)}/json")

    common.inspect_all(console, flags, arguments, fetch, IMAGE)


def _history(console: Console, flags: Flags, arguments: list[str]) -> None:
    from manager.cli.format_image import (  # noqa: PLC0415 -- only here
        EXACT_HISTORY_VIEW,
        HISTORY_VIEW,
        history_rows,
    )
    from manager.cli.views import render  # noqa: PLC0415 -- only here

    rows = history_rows(
        console.engine.get(f"/images/{quoted(arguments[0])}/history"),
        now=console.now,
        truncate=not flags.is_on("no-trunc"),
        human=flags.get("human", True),
    )
    quiet = flags.is_on("quiet")
    view = HISTORY_VIEW if flags.get("human", True) else EXACT_HISTORY_VIEW
    console.write(render(view, rows, flags.text("format"), quiet=quiet))


def _tag(console: Console, _flags: Flags, arguments: list[str]) -> None:
    source, target = arguments
    reference = parse_reference(target)
    if reference.digest:
        raise CommandError("refusing to create a tag with a digest reference")
    query = {"repo": reference.familiar_name, "tag": reference.tagged().tag}
    console.engine.call("POST", f"/images/{quoted(source)}/tag", query)


def show_progress(console: Console, stream: Iterator[bytes], *, quiet: bool = False) -> None:
    """Show a stream of progress messages.

    Raises:
        CommandError: the daemon reports in it that the work failed.
    """
    from manager.cli.jsonstream import (  # noqa: PLC0415 -- only for streams
        MessageReader,
        message_error,
        message_line,
    )
    from manager.cli.progress import ProgressDisplay  # noqa: PLC0415 -- likewise

    reader = MessageReader()
    display = ProgressDisplay(is_terminal=console.is_terminal)

    def show(messages: list[dict[str, Any]]) -> None:
        for message in messages:
            failed = message_error(message)
            if failed:
                raise CommandError(failed)
            line = message_line(message)
            if quiet or line is None:
                continue
            if isinstance(line, str):
                console.write(line)
            else:
                console.control(display.show(line))
        console.flush()

    for data in stream:
        show(reader.feed(data))
    show(reader.finish())


def _auth(reference: Reference) -> dict[str, str]:
    from manager.cli.registry import auth_header  # noqa: PLC0415 -- only for registries

    return {"X-Registry-Auth": auth_header(reference)}


def _named(console: Console, flags: Flags, text: str) -> Reference:
    """Parse the argument of pull or push."""
    reference = parse_reference(text)
    if flags.is_on("all-tags"):
        if not reference.is_name_only:
            raise CommandError("tag can't be used with --all-tags/-a")
        return reference
    if reference.is_name_only and not flags.is_on("quiet"):
        console.line("Using default tag: latest")
    return reference.tagged()


def _pull(console: Console, flags: Flags, arguments: list[str]) -> None:
    reference = _named(console, flags, arguments[0])
    query = {
        "fromImage": reference.familiar_name,
        "tag": reference.digest or reference.tag or None,
        "platform": flags.text("platform") or None,
    }
    stream = console.engine.stream("POST", "/images/create", query, headers=_auth(reference))
    show_progress(console, stream, quiet=flags.is_on("quiet"))
    console.line(reference.full)


def _push(console: Console, flags: Flags, arguments: list[str]) -> None:
    reference = _named(console, flags, arguments[0])
    path = f"/images/{quoted(reference.familiar_name)}/push"
    query = {"tag": reference.tag or None}
    stream = console.engine.stream("POST", path, query, headers=_auth(reference))
    show_progress(console, stream, quiet=flags.is_on("quiet"))
    if flags.is_on("quiet"):
        console.line(reference.full)


def _opened(path: str) -> IO[bytes]:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise CommandError(f"open {path}: {(error.strerror or str(error)).lower()}") from error


def _load(console: Console, flags: Flags, _arguments: list[str]) -> None:
    path = flags.text("input")
    if not path and sys.stdin.isatty():
        raise CommandError("requested load from stdin, but stdin is empty")
    source = _opened(path) if path else sys.stdin.buffer
    quiet = flags.is_on("quiet") or not console.is_terminal
    query = {"quiet": "1" if quiet else "0", "platform": flags.text("platform") or None}
    with source:
        stream = console.engine.stream("POST", "/images/load", query, upload=source)
        show_progress(console, stream)


def _import(console: Console, flags: Flags, arguments: list[str]) -> None:
    source = arguments[0]
    is_url = source.startswith(("http://", "https://"))
    query: dict[str, str | None] = {
        "fromSrc": source if is_url else "-",
        "message": flags.text("message") or None,
        "platform": flags.text("platform") or None,
    }
    if len(arguments) > 1:
        reference = parse_reference(arguments[1])
        query |= {"repo": reference.familiar_name, "tag": reference.tag or None}
    changes = "".join(f"&changes={quoted_query(change)}" for change in flags.many("change"))
    path = "/images/create"
    upload = None if is_url else sys.stdin.buffer if source == "-" else _opened(source)
    stream = console.engine.stream("POST", path, query, upload=upload, more_query=changes)
    show_progress(console, stream)


def quoted_query(text: str) -> str:
    """Escape a value of a query."""
    from urllib.parse import quote_plus  # noqa: PLC0415 -- only here

    return quote_plus(text)


def _save(console: Console, flags: Flags, arguments: list[str]) -> None:
    path = flags.text("output")
    if not path and sys.stdout.isatty():
        raise CommandError("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    names = "&".join(f"names={quoted_query(name)}" for name in arguments)
    stream = console.engine.stream("GET", "/images/get", {}, more_query=f"&{names}")
    if not path:
        for data in stream:
            sys.stdout.buffer.write(data)
        return
    # Written beside the target and renamed, so that a broken transfer leaves no half archive.
    partial = Path(f"{path}.partial")
    try:
        with partial.open("wb") as file:
            for data in stream:
                file.write(data)
        partial.replace(path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _remove(console: Console, flags: Flags, arguments: list[str]) -> None:
    query = {
        "force": "1" if flags.is_on("force") else None,
        "noprune": "1" if flags.is_on("no-prune") else None,
    }
    errors: list[DaemonError] = []
    for reference in arguments:
        try:
            answer = console.engine.delete(f"/images/{quoted(reference)}", query)
        except DaemonError as error:
            errors.append(error)
            continue
        for item in answer or []:
            kind = "Deleted" if item.get("Deleted") else "Untagged"
            console.line(f"{kind}: {item[kind]}")
    if not errors:
        return
    message = "\n".join(error.message for error in errors)
    if flags.is_on("force") and all(error.is_not_found for error in errors):
        console.warn(message)  # As Docker: --force makes a missing image no failure.
    else:
        raise CommandError(message)


def _prune(console: Console, flags: Flags, _arguments: list[str]) -> None:
    everything = flags.is_on("all")
    if not flags.is_on("force"):
        what = (
            "all images without at least one container associated to them"
            if everything
            else "all dangling images"
        )
        console.write(
            f"WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] "
        )
        console.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise CommandError("image prune has been cancelled")
    wanted = grouped(flags.many("filter")) | {"dangling": [str(not everything).lower()]}
    answer = console.engine.call("POST", "/images/prune", {"filters": filters(wanted)})
    deleted = answer.get("ImagesDeleted") or []
    if deleted:
        console.line("Deleted Images:")
        for item in deleted:
            kind = "untagged" if item.get("Untagged") else "deleted"
            console.line(f"{kind}: {item[kind.title()]}")
        console.line()
    console.line(f"Total reclaimed space: {human_size(answer.get('SpaceReclaimed', 0))}")


_PLATFORM = Flag("platform", "string", 'Use this platform, formatted as "os[/arch[/variant]]"')
_QUIET_OUTPUT = Flag("quiet", "", "Suppress verbose output", "q")
_QUIET_IDS = Flag("quiet", "", "Only show image IDs", "q")
_ALL_TAGS = Flag("all-tags", "", "All tagged images in the repository", "a")

LIST = Spec(
    _list,
    (
        Flag("all", "", "Show all images (default hides intermediate images)", "a"),
        Flag("digests", "", "Show digests"),
        common.FILTER,
        common.FORMAT,
        Flag("no-trunc", "", "Don't truncate output"),
        _QUIET_IDS,
    ),
    "[OPTIONS] [REPOSITORY[:TAG]]",
    most=1,
)
INSPECT = Spec(_inspect, (common.INSPECT_FORMAT,), "[OPTIONS] IMAGE [IMAGE...]", least=1, most=None)
HISTORY = Spec(
    _history,
    (
        common.FORMAT,
        Flag("human", "", "Print sizes and dates in human readable format (default true)", "H"),
        Flag("no-trunc", "", "Don't truncate output"),
        _QUIET_IDS,
    ),
    "[OPTIONS] IMAGE",
    least=1,
    most=1,
)
TAG = Spec(_tag, (), "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", least=2, most=2)
PULL = Spec(
    _pull,
    (_ALL_TAGS, _PLATFORM, _QUIET_OUTPUT),
    "[OPTIONS] NAME[:TAG|@DIGEST]",
    least=1,
    most=1,
)
PUSH = Spec(_push, (_ALL_TAGS, _QUIET_OUTPUT), "[OPTIONS] NAME[:TAG]", least=1, most=1)
LOAD = Spec(
    _load,
    (
        Flag("input", "string", "Read from tar archive file, instead of STDIN", "i"),
        _PLATFORM,
        Flag("quiet", "", "Suppress the load output", "q"),
    ),
    "[OPTIONS]",
)
IMPORT = Spec(
    _import,
    (
        Flag("change", "list", "Apply Dockerfile instruction to the created image", "c", many=True),
        Flag("message", "string", "Set commit message for imported image", "m"),
        _PLATFORM,
    ),
    "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
    least=1,
    most=2,
)
SAVE = Spec(
    _save,
    (Flag("output", "string", "Write to a file, instead of STDOUT", "o"),),
    "[OPTIONS] IMAGE [IMAGE...]",
    least=1,
    most=None,
)
REMOVE = Spec(
    _remove,
    (
        Flag("force", "", "Force removal of the image", "f"),
        Flag("no-prune", "", "Do not delete untagged parents"),
    ),
    "[OPTIONS] IMAGE [IMAGE...]",
    least=1,
    most=None,
)
PRUNE = Spec(
    _prune,
    (
        Flag("all", "", "Remove all unused images, not just dangling ones", "a"),
        common.FILTER._replace(short=""),
        Flag("force", "", "Do not prompt for confirmation", "f"),
    ),
    "[OPTIONS]",
)

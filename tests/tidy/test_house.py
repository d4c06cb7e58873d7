"""The rules of the house that no linter knows."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("proto", "disk", "raft", "scheduler", "manager", "worker", "overlay")

# Modules that decide: they may import only each other's kind and these parts of the library.
PURE = (
    "proto/ids.py",
    "proto/states.py",
    "proto/errors.py",
    "proto/assignments.py",
    "proto/gotemplate.py",
    "proto/objects/*.py",
    "scheduler/*.py",
    "manager/orchestrator/difference.py",
    "manager/orchestrator/draft.py",
    "manager/orchestrator/globally.py",
    "manager/orchestrator/nodes.py",
    "manager/orchestrator/plan.py",
    "manager/orchestrator/quiet.py",
    "manager/orchestrator/reaper.py",
    "manager/orchestrator/reconcile.py",
    "manager/orchestrator/replicated.py",
    "manager/orchestrator/restart.py",
    "manager/orchestrator/retire.py",
    "manager/orchestrator/slots.py",
    "manager/orchestrator/step.py",
    "manager/orchestrator/update.py",
    "manager/ca/chain.py",
    "manager/ca/clocks.py",
    "manager/ca/external_rules.py",
    "manager/ca/issue.py",
    "manager/ca/rootchange.py",
    "manager/ca/tokens.py",
    "manager/httpapi/attempts.py",
    "manager/httpapi/repeats.py",
    "manager/daemon/addresses.py",
    "manager/dispatcher/assignments.py",
    "manager/dispatcher/liveness.py",
    "manager/dispatcher/statuses.py",
    "manager/dispatcher/wire.py",
    "manager/nodeport/allowance.py",
    "manager/nodeport/claims.py",
    "manager/nodeport/remotes.py",
    "worker/task/*.py",
    "worker/container.py",
    "worker/ports.py",
    "overlay/diff.py",
    "overlay/firewall_rules.py",
    "overlay/rules.py",
    "overlay/ipam.py",
    "raft/core/*.py",
    "raft/format.py",
    "raft/stored.py",
    "raft/sim/[a-z]*.py",
    "raft/transport/limits.py",
    "raft/transport/outbox.py",
    "raft/transport/identity.py",
    "raft/transport/throttle.py",
)
IMPURE = {
    "asyncio", "socket", "subprocess", "os", "time", "threading", "pathlib", "shutil", "logging",
    "structlog", "secrets", "tempfile", "signal", "select", "http", "urllib", "ctypes", "aiohttp",
}  # fmt: skip


def tracked(*patterns):
    """List the files that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def imports(path):
    """Yield the top-level names that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def pure_modules():
    """List the files that the patterns name."""
    return sorted({path for pattern in PURE for path in ROOT.glob(pattern)})


def test_there_are_pure_modules():
    """A pattern that matches nothing would make the next test empty."""
    for pattern in PURE:
        assert list(ROOT.glob(pattern)), pattern


@pytest.mark.parametrize("path", pure_modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_cores_import_no_io(path):
    """A module that decides has no clock, no sockets, no files, no logging."""
    assert set() == set(imports(path)) & IMPURE


def test_cores_are_not_async():
    """A core has no `async`."""
    for path in pure_modules():
        asyncs = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
        ]
        assert asyncs == [], path


def test_imports_only_point_down():
    """The layers of CONTRIBUTING.md hold; the contracts are in pyproject.toml."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_each_package_has_a_readme_or_a_design():
    """A reader finds a map in every top-level package."""
    for package in PACKAGES:
        assert (ROOT / package / "README.md").exists(), package


def test_no_dependency_owns_our_package_names():
    """Our packages have plain names; nothing that we depend on may install the same."""
    owners = packages_distributions()
    for package in PACKAGES:
        # An editable installation records no packages, so ours may be missing from the list.
        assert {"swarm-orchestrator"} >= set(owners.get(package, [])), package


def test_nothing_to_fix_is_left():
    """A marker for later names an issue, and FIXME never reaches main."""
    for path in tracked("*.py", "*.md", "Makefile"):
        if path == Path(__file__):
            continue
        text = path.read_text()
        assert "FIX" + "ME" not in text, path
        for found in re.findall(r"# TODO(?!\(#\d+\):).*", text):
            pytest.fail(f"{path}: {found}")


def test_a_failure_in_the_log_has_its_reason():
    """The text of an exception may be empty; `proto.errors.reason_of` says something always."""
    events = {"debug", "info", "warning", "error", "critical"}
    for path in tracked(*(f"{package}/*.py" for package in PACKAGES)):
        for call in ast.walk(ast.parse(path.read_text())):
            match call:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=attr)):
                    empty = [
                        word.arg
                        for word in call.keywords
                        if isinstance(word.value, ast.Call)
                        and isinstance(word.value.func, ast.Name)
                        and word.value.func.id == "str"
                        and word.arg in {"error", "reason"}
                    ]
                    assert attr not in events or empty == [], f"{path}:{call.lineno}"


def test_docs_name_files_that_exist():
    """A path in backquotes in a document is there."""
    for path in tracked("*.md"):
        for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|toml|yaml))`", path.read_text()):
            candidates = (ROOT / name, path.parent / name)
            assert any(candidate.exists() for candidate in candidates), f"{path}: {name}"


def test_lines_of_documents_are_not_absurd():
    """Markdown files have a title."""
    for path in tracked("*.md"):
        assert path.read_text().startswith("# "), path


def test_every_dependency_has_bounds():
    """A dependency without a lower bound is one that was never tried."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert re.search(r"[>=]=", requirement), requirement

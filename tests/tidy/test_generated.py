"""The generated code is what the generator makes of the .proto files, and grpc stays out."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generated_code_is_fresh(tmp_path):
    """`tools/gen` would change nothing."""
    subprocess.run([ROOT / "tools/gen", tmp_path], check=True, timeout=60)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    committed = {
        path.relative_to(ROOT): path.read_text() for path in (ROOT / "proto/v1").glob("*_pb2*")
    }
    assert made
    assert made == committed


def test_a_lone_manager_does_not_load_grpc():
    """The daemon's main module imports neither grpc nor protobuf."""
    program = (
        "import sys, manager.daemon.main\n"
        "print([name for name in ('grpc', 'google.protobuf') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_only_the_node_port_imports_grpc():
    """Outside what stands on the node port and generated code no module of ours imports grpc."""
    found = set()
    for package in ("proto", "disk", "raft", "scheduler", "manager", "worker", "overlay"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                if any(name.split(".")[0] == "grpc" for name in names):
                    found.add(path.relative_to(ROOT).parent.as_posix())
    assert found == {
        "raft/transport",
        "proto/v1",
        "manager/nodeport",
        "manager/dispatcher",
        "manager/logbroker",
        "manager/daemon",
    }

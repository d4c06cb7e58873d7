"""Task: domain to Engine JSON. Pure; tasks never come in."""

from __future__ import annotations

from manager.httpapi.convert.common import Json, compact, int64, meta
from manager.httpapi.convert.service import is_job, port_to_json, task_spec_to_json
from manager.httpapi.timestamps import rfc3339
from proto.objects import ServiceSpec, Task, TaskStatus
from proto.states import TaskState
from proto.text import printable


def state_word(state: TaskState) -> str:
    """Write a task's state (`running`)."""
    return state.name.lower()


def task_to_json(task: Task, spec: ServiceSpec) -> Json:
    """Write a task with the version of the spec that it was made from."""
    members: Json = {"ID": task.id}
    members.update(meta(task.version, task.created_at, task.updated_at))
    members["Labels"] = {}
    members["Spec"] = task_spec_to_json(spec.task)
    members.update(
        compact({"ServiceID": task.service_id, "Slot": task.slot, "NodeID": task.node_id})
    )
    members["Status"] = status_to_json(task.status)
    members["DesiredState"] = state_word(task.desired_state)
    if is_job(spec.mode):
        members["JobIteration"] = {"Index": task.spec_version}
    return members


def status_to_json(status: TaskStatus) -> Json:
    """Write what is observed of a task."""
    members: Json = {
        "Timestamp": rfc3339(status.timestamp),
        "State": state_word(status.state),
    }
    members.update(compact({"Message": printable(status.message), "Err": printable(status.err)}))
    if status.container_id:
        members["ContainerStatus"] = {
            "ContainerID": printable(status.container_id),
            "PID": int64(status.pid),
            "ExitCode": int64(status.exit_code or 0),
        }
    ports = [port_to_json(port) for port in status.host_ports]
    members["PortStatus"] = compact({"Ports": ports})
    return members

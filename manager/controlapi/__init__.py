"""The control API: validated operations on the cluster's objects."""

from manager.controlapi.control import Control
from manager.controlapi.services import ServiceStatus

__all__ = ["Control", "ServiceStatus"]

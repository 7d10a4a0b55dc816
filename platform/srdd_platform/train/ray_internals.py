"""Private names of Ray Train; see :mod:`srdd_platform.core.ray_internals`."""

from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback

__all__ = ["ControllerCallback", "WorkerGroupStartupTimeoutError", "WorkerHealthCheckFailedError"]

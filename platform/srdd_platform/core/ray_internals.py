"""Ray's private names that the platform uses, gathered for the day when Ray renames one.

Ray has no public name for what they do. Its version is bound in ``pyproject.toml``, and one test
asks for each of them. Those of Ray Train are in :mod:`srdd_platform.train.ray_internals`.
"""

from pathlib import Path

import ray
from ray._common.tls_utils import load_certs_from_env
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_generator import (
    generate_new_authentication_token,
)
from ray._private.services import canonicalize_bootstrap_address
from ray._private.utils import detect_fate_sharing_support, read_ray_address
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

__all__ = [
    "CheckAliveRequest",
    "NodeInfoGcsServiceStub",
    "autoscaler_limits",
    "canonicalize_bootstrap_address",
    "dashboard_address",
    "detect_fate_sharing_support",
    "free_by_node",
    "generate_new_authentication_token",
    "load_certs_from_env",
    "logs_dir",
    "ray_constants",
    "read_ray_address",
    "reload_settings",
    "services",
]


def reload_settings() -> None:
    """Let Ray forget what it read of its variables, the token among them."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def dashboard_address() -> str:
    """``host:port`` of the dashboard of the Ray that is joined; "" where it runs none."""
    return ray._private.worker.get_dashboard_url() or ""


def free_by_node() -> list[dict[str, float]]:
    """The resources that nobody holds, a dictionary for each node that is up."""
    return [dict(node) for node in ray._private.state.available_resources_per_node().values()]


def autoscaler_limits() -> dict[str, float]:
    """The most an autoscaling cluster may have of each resource; empty without an autoscaler."""
    return dict(ray._private.state.state.get_max_resources_from_cluster_config() or {})


def logs_dir() -> Path | None:
    """The directory of the logs of Ray's session on this node; None before it has one."""
    node = ray._private.worker._global_node
    return None if node is None else Path(node.get_logs_dir_path())

"""Options of a server."""

from dataclasses import dataclass
from pathlib import Path

from srdd.devices import Dtype, check_dtype
from srdd.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """What is served, where and with what.

    Raises:
        UserError: an option is wrong; it is named as on the command line.
    """

    directory: Path  # pipeline or run directory
    port: int = 8000  # 0 chooses a free one
    host: str = "127.0.0.1"  # the interface to listen on
    replicas: int = 1  # copies of the model, each in a process (and on a GPU) of its own
    max_batch: int = 32  # images that share a batch
    device: str = "cpu"
    dtype: Dtype = "float32"  # of the model's weights
    address: str | None = None  # an existing Ray cluster (host:port or auto); else a local one

    def __post_init__(self) -> None:
        for name, value in (("--replicas", self.replicas), ("--max-batch", self.max_batch)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"--device must be cpu or cuda, got {self.device!r}")
        check_dtype(self.dtype)
        if not 0 <= self.port < 65536:
            raise UserError(f"--port must lie in [0, 65535], got {self.port}")

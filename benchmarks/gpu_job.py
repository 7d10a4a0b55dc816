"""What the parts of a GPU check share: what they are given, and how they report a failure."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import command
from benchmarks.arms import ArmFailedError, SkipArmError
from benchmarks.gpu_results import Machine, Row, Status
from benchmarks.isolated import one_line
from benchmarks.sizes import SIZES, Size

Send = Callable[[Row | Machine], None]
_RESERVE = 0.1  # of a part's time, to end in before it is stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a part is given."""

    size_name: str
    device_name: str
    batches: tuple[int, ...] = (1,)  # of the part, in its order
    threads: int = 1
    seed: int = 0
    arrays: Path | None = None  # packed images, for the training on them
    limit_s: float  # after which the part is stopped
    began: float  # time.monotonic() of its start

    @property
    def size(self) -> Size:
        """The model."""
        return SIZES[self.size_name]

    @property
    def left_s(self) -> float:
        """Seconds to spend; negative where the time is over."""
        return self.began + (1 - _RESERVE) * self.limit_s - time.monotonic()

    @property
    def repeats(self) -> int:
        """Rounds of a timing, where the time allows so many."""
        return 15 if self.gpu else 2

    @property
    def gpu(self) -> bool:
        """Whether it runs on a CUDA device."""
        return self.device_name.startswith("cuda")

    def require(self, least_s: float = 0.0) -> None:
        """Go on only if more than ``least_s`` seconds are left.

        Raises:
            SkipArmError: the time is over.
        """
        if self.left_s <= least_s:
            raise SkipArmError("no time was left")

    def device(self, *, tf32: bool = False) -> torch.device:
        """The device; sets the CPU threads, and whether float32 products may be TF32."""
        torch.set_num_threads(self.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        device = torch.device(self.device_name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        return device


@dataclass(slots=True)
class Tried:
    """How an attempt ended."""

    out_of_memory: bool = False


@contextlib.contextmanager
def attempt(
    job: Job,
    send: Send,
    what: str,
    dtype: str = "",
    batch: int | None = None,
) -> Iterator[Tried]:
    """One arm or check: where it cannot be done, a row says why and the part goes on.

    Raises:
        RuntimeError: the CUDA context is lost, so that nothing more can run in this process.
    """
    tried = Tried()
    status: Status = "failed"
    try:
        yield tried
        return
    except ArmFailedError as error:
        note = str(error)
    except SkipArmError as reason:
        status, note = "skipped", str(reason)
    except Exception as error:
        tried.out_of_memory = isinstance(error, torch.OutOfMemoryError)
        note = "out of memory" if tried.out_of_memory else one_line(error)
        command.say(f"{what} {dtype}: {error}")
    send(Row(what=what, status=status, dtype=dtype, batch=batch, note=note))
    free(job)


def free(job: Job) -> None:
    """Give unused device memory back.

    Raises:
        RuntimeError: the CUDA context is lost.
    """
    gc.collect()
    if job.gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

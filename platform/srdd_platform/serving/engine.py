"""A step loop that requests join and leave between two steps of a generator.

Every turn advances, by one step, the pieces of requests that are least advanced: a newcomer
catches up with those already under way and then shares their batches. At most ``max_batch``
images are under way at once, so what stands still waits for newcomers that fit beside it and no
others. An image depends on its class, its seed and the settings alone, whatever it shares a batch
with.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.generator import Generator, sample
from srdd.images import to_uint8
from srdd.rng import image_seeds
from srdd_platform.serving.errors import (
    QueueFullError,
    SamplingError,
    StoppedError,
    retry_after,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Generated:
    """The images of one request, and how it went."""

    images: Tensor  # uint8 [n, 3, R, R], on the CPU
    queue_s: float  # from the request to its first turn
    sample_s: float  # from its first turn to its last, decoding included
    batch_images: int  # images in the largest batch that any of its images was in


@dataclass(frozen=True, slots=True)
class Load:
    """Images inside the engine."""

    active: int  # between two steps
    waiting: int


@dataclass(eq=False, slots=True)
class _Request:
    settings: Any  # those of the generator's family
    done: asyncio.Future[Generated]  # a caller that leaves cancels it
    asked: float
    images: list[Tensor | None]  # of each piece
    started: float | None = None
    batch_images: int = 0


@dataclass(eq=False, slots=True)
class _Piece:
    """Up to ``max_batch`` images of a request."""

    request: _Request
    place: int  # among the request's pieces
    labels: list[int]
    seeds: list[int]
    state: Any = None  # a State of the generator, once it has begun

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def gone(self) -> bool:
        return self.request.done.done()


class Engine:
    """Draws the images of concurrent requests in shared batches, in one worker thread.

    Args:
        generator: on its device, in its dtype.
        max_batch: images advanced together, and under way at once.
        max_images: images inside, under way or waiting, beyond which a request is refused; an
            empty engine takes a request of any size.
        pad: fill every batch up to ``max_batch``. A GPU's kernels round by the batch's shape;
            a CPU's need no padding.
    """

    def __init__(
        self,
        generator: Generator[Any],
        *,
        max_batch: int = 32,
        max_images: int = 256,
        pad: bool = False,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("max_images", max_images)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        self.generator = generator
        self.max_batch = max_batch
        self.max_images = max_images
        self.pad = pad
        self.warm = False
        self._waiting: deque[_Piece] = deque()
        self._active: list[_Piece] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._task: asyncio.Task[None] | None = None
        self._work = asyncio.Event()
        self._busy_s = 0.0  # seconds of turns and the images they finished: the pace
        self._finished = 0

    def warm_up(self) -> None:
        """Draw one image, then a whole batch, so that the first request meets no cold start."""
        for batch in (1, self.max_batch):
            started = time.monotonic()
            labels = torch.zeros(batch, dtype=torch.int64)
            to_uint8(sample(self.generator, labels, None, image_seeds(0, 0, batch)).images)
            self._busy_s, self._finished = time.monotonic() - started, batch
        self.warm = True

    @property
    def load(self) -> Load:
        """Images under way and waiting; those whose caller has left do not count."""
        active = sum(len(piece) for piece in self._active if not piece.gone)
        return Load(active, sum(len(piece) for piece in self._waiting if not piece.gone))

    def check(self) -> None:
        """Do nothing while the loop can take requests.

        Raises:
            StoppedError: the loop has ended; the reason is the cause.
        """
        if self._task is not None and self._task.done():
            error = None if self._task.cancelled() else self._task.exception()
            raise StoppedError("the step loop has ended") from error

    async def generate(
        self, labels: Sequence[int], seeds: Sequence[int], settings: Any = None
    ) -> Generated:
        """Draw an image for each label; cancelling the call ends it at the next step.

        Args:
            labels: a class an image.
            seeds: a seed an image.
            settings: of the generator's family; None takes its own.

        Raises:
            UserError: labels, seeds or settings do not fit the model.
            QueueFullError: too many images are inside.
            SamplingError: the batch that it was in failed.
            StoppedError: the loop has ended.
        """
        if not labels or len(labels) != len(seeds):
            raise UserError(f"give one seed an image: {len(labels)} labels, {len(seeds)} seeds")
        self.check()
        inside = self.load.active + self.load.waiting
        if inside and inside + len(labels) > self.max_images:
            raise QueueFullError(self._retry_after(inside, len(labels)))
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run(), name="sampler loop")
            self._task.add_done_callback(lambda _: self._fail_all())
        settings = self.generator.sampler if settings is None else settings
        starts = range(0, len(labels), self.max_batch)
        request = _Request(settings, loop.create_future(), time.monotonic(), [None] * len(starts))
        for place, start in enumerate(starts):
            rows = slice(start, start + self.max_batch)
            self._waiting.append(_Piece(request, place, list(labels[rows]), list(seeds[rows])))
        self._work.set()
        return await request.done

    async def close(self) -> None:
        """End the loop; requests still inside fail with :class:`StoppedError`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _retry_after(self, inside: int, asked: int) -> int:
        """Seconds until there is room for so many images, or until all inside have left."""
        pace = self._busy_s / self._finished if self._finished else 1.0
        room = min(inside, inside + asked - self.max_images)
        return retry_after(room * pace, inside * pace)

    async def _run(self) -> None:
        """Begin a newcomer or advance a batch, over and over, while there is work."""
        while True:
            self._admit()
            if not self._active:
                self._work.clear()
                await self._work.wait()
            elif new := next((piece for piece in self._active if piece.state is None), None):
                await self._begin(new)
            else:
                await self._advance(self._next_batch())

    async def _begin(self, piece: _Piece) -> None:
        """Begin a piece; where it does not fit the model, its request alone fails."""
        request = piece.request
        request.started = time.monotonic() if request.started is None else request.started
        begun = (piece.labels, request.settings, piece.seeds)
        try:
            piece.state = await self._in_thread(self.generator.begin, *begun)
        except UserError as error:
            if not piece.gone:
                request.done.set_exception(error)
        except Exception as error:
            self._fail([piece], error)

    async def _advance(self, batch: list[_Piece]) -> None:
        """Advance a batch; where that fails, its requests alone fail."""
        size = sum(len(piece) for piece in batch)
        for piece in batch:
            piece.request.batch_images = max(piece.request.batch_images, size)
        try:
            images = await self._in_thread(self._turn, batch)
        except Exception as error:
            self._fail(batch, error)
            return
        for piece, finished in zip(batch, images, strict=False):
            self._collect(piece, finished)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Work of the worker thread, whose time counts in the pace."""
        started = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        finally:
            self._busy_s += time.monotonic() - started

    def _admit(self) -> None:
        """Let pieces of requests that were left go, and those that wait in, first come first."""
        self._active = [piece for piece in self._active if not piece.gone]
        self._waiting = deque(piece for piece in self._waiting if not piece.gone)
        room = self.max_batch - sum(len(piece) for piece in self._active)
        while self._waiting and len(self._waiting[0]) <= room:
            room -= len(self._waiting[0])
            self._active.append(self._waiting.popleft())

    def _next_batch(self) -> list[_Piece]:
        """All pieces at the least advanced step that share their settings."""
        step = min(piece.state.step for piece in self._active)
        least = [piece for piece in self._active if piece.state.step == step]
        settings = least[0].request.settings
        return [piece for piece in least if piece.request.settings == settings]

    def _turn(self, batch: list[_Piece]) -> list[Tensor]:
        """Advance a batch by one step (in the worker thread).

        Returns:
            The images of each piece if that was the last step, else nothing.
        """
        states, sizes = [piece.state for piece in batch], [len(piece) for piece in batch]
        if self.pad and sum(sizes) < self.max_batch:
            filler = states[0].select(torch.tensor([0]))
            sizes.append(self.max_batch - sum(sizes))
            states += [filler] * sizes[-1]
        state = self.generator.advance(type(states[0]).join(states))
        if state.step == state.num_steps:
            images = to_uint8(self.generator.decode(state)).cpu()
            return list(images.split(sizes))
        for piece, rows in zip(batch, torch.arange(len(state)).split(sizes), strict=False):
            piece.state = state.select(rows)
        return []

    def _collect(self, piece: _Piece, images: Tensor) -> None:
        """Keep a finished piece's images; the last piece ends its request."""
        self._active.remove(piece)
        self._finished += len(piece)
        request = piece.request
        request.images[piece.place] = images
        parts = [part for part in request.images if part is not None]
        if len(parts) == len(request.images) and not piece.gone:
            assert request.started is not None
            now = time.monotonic()
            queue_s, sample_s = request.started - request.asked, now - request.started
            images = torch.cat(parts)
            request.done.set_result(Generated(images, queue_s, sample_s, request.batch_images))

    def _fail(self, batch: list[_Piece], error: Exception) -> None:
        """Tell the requests of a batch why it failed."""
        reason = (str(error).splitlines() or [""])[0]
        alone = all(piece.request is batch[0].request for piece in batch)
        for piece in batch:
            if not piece.gone:
                failure = SamplingError(f"{type(error).__name__}: {reason}", repeats=alone)
                failure.__cause__ = error
                piece.request.done.set_exception(failure)

    def _fail_all(self) -> None:
        """Tell everyone inside that the loop has ended, so that nobody waits for ever."""
        for piece in [*self._active, *self._waiting]:
            if not piece.gone:
                piece.request.done.set_exception(StoppedError("the step loop has ended"))

"""The training loop of one process; a launcher with many hands in its slice and reductions.

The global batch of a step is a function of (seed, step), and every random choice is keyed by
(seed, step, sample), so the run does not depend on the number of workers beyond rounding, and
resuming is exact.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from srdd.train.config import OptimConfig
from srdd.train.optim import build_optimizer, lr_at


class Batch(NamedTuple):
    """One worker's share of a global batch."""

    inputs: Tensor  # images uint8 [b, 3, R, R], or codes int64 [b, L]
    labels_b: Tensor  # int64
    index_b: Tensor  # int64, the samples' numbers in the data set: keys of random choices
    global_size: int  # samples of all workers


class Reduce(Protocol):
    """What several workers must agree on; one worker agrees with itself."""

    rank: int
    world: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over workers; the tensor itself where there is one worker."""
        ...


@dataclass(slots=True)
class Alone:
    """One worker."""

    rank: int = 0
    world: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


ALONE = Alone()


class Task(Protocol):
    """What is trained. ``module(batch, step)`` gives the loss and metrics of a batch's share."""

    @property
    def module(self) -> nn.Module:
        """The model with its loss."""
        ...

    def after_step(self, batch: Batch, step: int, reduce: Reduce) -> None:
        """Upkeep after an update, the same on every worker."""
        ...

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """More to log, over all workers."""
        ...

    def state_dict(self, reduce: Reduce) -> dict[str, Tensor]:
        """State beyond module and optimizer, the same on every worker."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], reduce: Reduce) -> None:
        """Undo :meth:`state_dict`, with any number of workers."""
        ...


class Stateless:
    """A task whose module is all its state, with no upkeep."""

    def after_step(self, batch: Batch, step: int, reduce: Reduce) -> None:
        """Nothing to keep up."""

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """Nothing beyond the loss."""
        return {}

    def state_dict(self, reduce: Reduce) -> dict[str, Tensor]:
        """Nothing beyond the module."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor], reduce: Reduce) -> None:
        """Nothing to load."""


def clear_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Before a backward pass: gradients are dropped, and on CPU set to zero where they lie.

    There fresh ones would be paged in anew at every step, which is a tenth of a large model's.
    """
    for weight in weights:
        if not weight.is_cpu:
            weight.grad = None
        elif weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        else:
            weight.grad.zero_()


def save_state(
    task: Task, optimizer: torch.optim.Optimizer, step: int, reduce: Reduce
) -> dict[str, Any]:
    """All that resuming needs after ``step`` updates."""
    return {
        "step": step,
        "module": task.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "task": task.state_dict(reduce),
    }


def fit(
    task: Task,
    config: OptimConfig,
    batches: Callable[[int], Iterator[Batch]],
    *,
    resume: dict[str, Any] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    reduce: Reduce = ALONE,
    log_every: int = 10,
    on_log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    checkpoint_every: int = 0,
    on_checkpoint: Callable[[int, dict[str, Any]], None] = lambda step, state: None,
) -> None:
    """Train ``task`` for ``config.steps`` updates.

    Args:
        task: the module with its loss, and its upkeep.
        config: optimizer, schedule and seed.
        batches: from the step to begin at, this worker's batches from there on.
        resume: a state of :func:`save_state`.
        wrap: makes the module's forward and backward distributed.
        reduce: the other workers.
        log_every: updates between calls of ``on_log``, which gets means over all workers.
        on_log: called with the number of updates done and the metrics.
        checkpoint_every: updates between calls of ``on_checkpoint``; the last one always.
        on_checkpoint: called on every worker with the updates done and the state.

    Raises:
        FloatingPointError: the loss is no longer finite; the step is named.
    """
    optimizer = build_optimizer(task.module, config)
    step = 0
    if resume is not None:
        task.module.load_state_dict(resume["module"])
        optimizer.load_state_dict(resume["optimizer"])
        task.load_state_dict(resume["task"], reduce)
        step = int(resume["step"])
    module = wrap(task.module)
    task.module.train()
    weights = [weight for weight in task.module.parameters() if weight.requires_grad]
    stream = batches(step)
    while step < config.steps:
        batch = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(config, step)
        loss, metrics = module(batch, step)
        # A worker's mean counts as much as its share of the global batch.
        share = len(batch.inputs) * reduce.world / batch.global_size
        clear_gradients(weights)
        (loss * share).backward()
        norm = nn.utils.clip_grad_norm_(task.module.parameters(), config.clip or math.inf)
        if not torch.isfinite(norm):  # the norm is global: all workers stop together
            raise FloatingPointError(f"loss or gradient is not finite at step {step + 1}")
        optimizer.step()
        step += 1
        if step % log_every == 0 or step == config.steps:
            names = sorted(metrics)
            own = torch.stack([metrics[name].detach().double() for name in names])
            means = reduce.sum(own * (share / reduce.world)).tolist()
            logged = {**dict(zip(names, means, strict=True)), **task.metrics(reduce)}
            on_log(step, {**logged, "lr": lr_at(config, step - 1), "grad_norm": float(norm)})
        task.after_step(batch, step - 1, reduce)
        if step == config.steps or (checkpoint_every and step % checkpoint_every == 0):
            on_checkpoint(step, save_state(task, optimizer, step, reduce))

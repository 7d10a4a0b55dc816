"""The training loop of one process; a launcher with many hands in its slice and reductions.

The global batch of a step is a function of (seed, step), and every random choice is keyed by
(seed, step, sample), so the run does not depend on the number of workers beyond rounding, and
resuming is exact.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from srdd.train.config import OptimConfig
from srdd.train.ema import Ema
from srdd.train.optim import build_optimizer, lr_at, set_rates


class Batch(NamedTuple):
    """One worker's share of a global batch."""

    inputs: Tensor  # images uint8 [b, 3, R, R], or codes int64 [b, L]
    labels_b: Tensor  # int64
    index_b: Tensor  # int64, the samples' numbers in the data set: keys of random choices
    global_size: int  # samples of all workers


class Reduce(Protocol):
    """What several workers must agree on; one worker agrees with itself.

    Every worker calls each method. As they stand here, every worker has all weights whole.
    """

    rank: int
    world: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over workers; the tensor itself where there is one worker."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of which each worker has a part, as one."""
        return tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This worker's part of a whole tensor, laid out as ``like`` is."""
        return tensor

    def gather(self, state: dict[str, Any]) -> dict[str, Any]:
        """A nested state with whole tensors; the first worker alone needs to have it."""
        return state


@dataclass(slots=True)
class Alone(Reduce):
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

    def state_dict(self, reduce: Reduce) -> dict[str, Any]:
        """State beyond module and optimizer, the same on every worker; it may be nested."""
        ...

    def load_state_dict(self, state: dict[str, Any], reduce: Reduce) -> None:
        """Undo :meth:`state_dict`, with any number of workers."""
        ...


class Stateless:
    """A task whose module is all its state, with no upkeep."""

    def after_step(self, batch: Batch, step: int, reduce: Reduce) -> None:
        """Nothing to keep up."""

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """Nothing beyond the loss."""
        return {}

    def state_dict(self, reduce: Reduce) -> dict[str, Any]:
        """Nothing beyond the module."""
        return {}

    def load_state_dict(self, state: dict[str, Any], reduce: Reduce) -> None:
        """Nothing to load."""


def clear_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Before a backward pass: gradients are dropped, and on CPU set to zero where they lie.

    There fresh ones would be paged in anew at every step.
    """
    for weight in weights:
        if weight.is_cpu and weight.grad is not None:
            weight.grad.zero_()
        else:
            weight.grad = None


def save_state(
    task: Task, optimizer: torch.optim.Optimizer, ema: Ema, step: int, reduce: Reduce
) -> dict[str, Any]:
    """All that resuming needs after ``step`` updates, whatever the number of workers.

    The first worker has it; the others may have less.
    """
    weights = {
        "module": task.module.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    return {"step": step, **reduce.gather(weights), "task": task.state_dict(reduce)}


def load_state(
    task: Task, optimizer: torch.optim.Optimizer, ema: Ema, state: dict[str, Any], reduce: Reduce
) -> int:
    """Undo :func:`save_state`; returns the number of updates done."""

    def parts(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: reduce.part(x, own.get(name, x)) for name, x in tensors.items()}

    task.module.load_state_dict(parts(state["module"], task.module.state_dict()))
    ema.load_state_dict(parts(state["ema"], ema.state_dict()))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        i: {
            name: reduce.part(x, weights[i]) if x.shape == weights[i].shape else x
            for name, x in of.items()
        }
        for i, of in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**state["optimizer"], "state": moments})
    task.load_state_dict(state["task"], reduce)
    return int(state["step"])


def fit(
    task: Task,
    config: OptimConfig,
    batches: Callable[[int], Iterator[Batch]],
    *,
    extend_to: int = 0,
    resume: dict[str, Any] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    reduce: Reduce = ALONE,
    log_every: int = 10,
    on_log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    checkpoint_every: int = 0,
    on_checkpoint: Callable[[int, dict[str, Any]], None] = lambda step, state: None,
    validate_every: int = 0,
    validate: Callable[[], dict[str, float]] = dict,
    grid_every: int = 0,
    on_grid: Callable[[int], None] = lambda step: None,
) -> Ema:
    """Train ``task`` for ``config.steps`` updates.

    An update whose gradient is not finite is left out: neither weights nor averages move.

    Args:
        task: the module with its loss, and its upkeep.
        config: optimizer, schedule and seed.
        batches: from the step to begin at, this worker's batches from there on.
        extend_to: go on to this many updates, at the schedule's last rates.
        resume: a state of :func:`save_state`, which is used up.
        wrap: makes the module's forward and backward distributed, and may lay out its weights
            over the workers, in place. What it returns may have a context ``no_sync``, inside
            which workers' gradients do not meet.
        reduce: the other workers.
        log_every: updates between calls of ``on_log``, which gets means over all workers.
        on_log: called with the number of updates done and the metrics.
        checkpoint_every: updates between calls of ``on_checkpoint``; the last one always.
        on_checkpoint: called on every worker with the updates done and the state, which is
            complete on the first.
        validate_every: updates between calls of ``validate``; 0 never.
        validate: called on every worker, with the weights that the finished model would have;
            what it returns is logged as ``val_<name>``.
        grid_every: updates between calls of ``on_grid``; 0 never.
        on_grid: called on every worker with the updates done, while the module has the weights
            that the finished model would have; not after the last update.

    Returns:
        The weights' moving average, which the finished model takes.

    Raises:
        FloatingPointError: the loss is no longer finite; the step and the worst scale are named.
    """
    module = wrap(task.module)  # first: it may leave each worker a part of the weights
    optimizer = build_optimizer(task.module, config)
    ema = Ema(task.module, config.ema)
    step, faults, last = 0, 0, max(config.steps, extend_to)
    if resume is not None:
        step = load_state(task, optimizer, ema, resume, reduce)
    task.module.train()
    weights = [weight for weight in task.module.parameters() if weight.requires_grad]
    stream = batches(step)
    while step < last:
        batch = next(stream)
        set_rates(optimizer, config, step)
        clear_gradients(weights)
        parts = _backward(module, batch, step, config, reduce)
        grads = [weight.grad for weight in weights if weight.grad is not None]
        norm = reduce.whole(nn.utils.get_total_norm(grads))
        nn.utils.clip_grads_with_norm_(weights, config.clip or math.inf, norm)
        finite = bool(torch.isfinite(norm))  # the norm is global: all workers agree
        faults = 0 if finite else faults + 1
        if faults >= config.nonfinite_steps:
            raise FloatingPointError(_complaint(_means(parts, reduce), step + 1, faults))
        step += 1
        if finite:
            optimizer.step()
            ema.update()
            validated = validate_every > 0 and step % validate_every == 0 and step < last
            if step % log_every == 0 or step == last or validated:
                logged = {**_means(parts, reduce), **task.metrics(reduce)}
                if validated:
                    with ema.applied():
                        logged |= {f"val_{name}": value for name, value in validate().items()}
                on_log(step, {**logged, "lr": lr_at(config, step - 1), "grad_norm": float(norm)})
            with ema.following():
                task.after_step(batch, step - 1, reduce)
        if grid_every > 0 and step % grid_every == 0 and step < last:
            with ema.applied():
                on_grid(step)
        due = checkpoint_every > 0 and step % checkpoint_every == 0 and finite
        if step == last or due:
            on_checkpoint(step, save_state(task, optimizer, ema, step, reduce))
    return ema


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch in ``parts`` parts, whose sizes differ by one at most, that keep its global size."""
    chunks = zip(
        batch.inputs.tensor_split(parts), batch.labels_b.tensor_split(parts),
        batch.index_b.tensor_split(parts), strict=True,
    )  # fmt: skip
    return [Batch(*chunk, batch.global_size) for chunk in chunks]


def _backward(
    module: nn.Module, batch: Batch, step: int, config: OptimConfig, reduce: Reduce
) -> list[tuple[float, dict[str, Tensor]]]:
    """Gradients of a worker's batch, part by part.

    Returns:
        Each part's share of the global batch, and its metrics.
    """
    done: list[tuple[float, dict[str, Tensor]]] = []
    # As many on every worker, since shards meet at each: no more than the smallest share has.
    smallest = max(1, batch.global_size // reduce.world)
    micro_batches = split_batch(batch, min(config.accumulate, smallest))
    half = config.precision == "bfloat16"
    # Where the forward is distributed, workers' gradients meet once, at the last part.
    postponed = getattr(module, "no_sync", nullcontext)
    for i, part in enumerate(micro_batches):
        share = len(part.inputs) / part.global_size
        last = i + 1 == len(micro_batches)
        with nullcontext() if last else postponed():
            with torch.autocast(part.inputs.device.type, torch.bfloat16, enabled=half):
                loss, metrics = module(part, step)
            # A part's mean counts as much as its share; workers' gradients are averaged.
            (loss * (share * reduce.world)).backward()
        done.append((share, {name: value.detach() for name, value in metrics.items()}))
    return done


def _means(parts: list[tuple[float, dict[str, Tensor]]], reduce: Reduce) -> dict[str, float]:
    """Means of the metrics over the global batch."""
    names = sorted(parts[0][1])
    rows = [
        torch.stack([metrics[name].double() for name in names]) * share for share, metrics in parts
    ]
    means = reduce.sum(torch.stack(rows).sum(0)).tolist()
    return dict(zip(names, means, strict=True))


def _complaint(means: dict[str, float], step: int, faults: int) -> str:
    """What went wrong at a step whose loss is not finite."""
    text = f"loss or gradient is not finite at step {step}"
    if faults > 1:
        text += f", the last of {faults} in a row"
    scales = {n.removeprefix("nll_"): v for n, v in means.items() if n.startswith("nll_")}
    if scales:
        worst = max(scales, key=lambda n: math.inf if math.isnan(scales[n]) else scales[n])
        text += f"; worst at scale {worst}, where the loss is {scales[worst]:.4g}"
    return text

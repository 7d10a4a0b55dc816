"""The training loop of one process; a launcher with many hands in its slice and reductions.

The global batch of a step is a function of (seed, step), and every random choice is keyed by
(seed, step, sample), so the run does not depend on the number of workers beyond rounding, and
resuming is exact.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from srdd.train.config import OptimConfig
from srdd.train.ema import Ema
from srdd.train.optim import build_optimizer, lr_at, set_rates
from srdd.train.task import Batch, Trainable
from srdd.train.workers import ALONE, Reduce


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
    task: Trainable, optimizer: torch.optim.Optimizer, ema: Ema, step: int, reduce: Reduce
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
    task: Trainable,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    state: dict[str, Any],
    reduce: Reduce,
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """What becomes of the metrics of updates.

    ``write`` gets the number of updates done and the metrics: means over all workers, and what
    ``validate`` returned as ``val_<name>``. Every worker calls both. ``validate`` sees the weights
    that the finished model would have, and is not called after the last update.
    """

    write: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    every: int = 10  # updates between calls of ``write``; after the last one always
    validate: Callable[[], dict[str, float]] = dict
    validate_every: int = 0  # updates between calls of ``validate``, which are logged; 0: never

    def validates(self, step: int, last: int) -> bool:
        """Whether ``validate`` is called after ``step`` of ``last`` updates."""
        return _divides(self.validate_every, step) and step < last

    def due(self, step: int, last: int) -> bool:
        """Whether ``write`` is called after ``step`` of ``last`` updates."""
        return _divides(self.every, step) or step == last or self.validates(step, last)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hook:
    """What every worker does after some of the updates.

    ``run`` gets the number of updates done and a function that returns the state of
    :func:`save_state`. All workers must call that function, or none.
    """

    run: Callable[[int, Callable[[], dict[str, Any]]], None]
    every: int  # updates between calls; 0: never
    at_end: bool = False  # after the last update always, instead of never
    after_faults: bool = False  # after an update that was left out too
    with_average: bool = False  # the module has the weights that the finished model would have

    def due(self, step: int, last: int, *, finite: bool) -> bool:
        """Whether it runs after ``step`` of ``last`` updates."""
        if step == last:
            return self.at_end
        return _divides(self.every, step) and (finite or self.after_faults)


def checkpoint_hook(every: int, save: Callable[[int, dict[str, Any]], None]) -> Hook:
    """A hook that calls ``save`` with the updates done and the state; after the last one always.

    Every worker calls ``save``; the first one has the whole state.
    """
    return Hook(run=lambda step, state: save(step, state()), every=every, at_end=True)


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


NO_LOG = Log()


def fit(
    task: Trainable,
    config: OptimConfig,
    batches: Callable[[int], Iterator[Batch]],
    *,
    extend_to: int = 0,
    resume: dict[str, Any] | None = None,
    reduce: Reduce = ALONE,
    log: Log = NO_LOG,
    hooks: Sequence[Hook] = (),
) -> Ema:
    """Train ``task`` for ``config.steps`` updates.

    An update whose gradient is not finite is left out: neither weights nor averages move.

    Args:
        task: the module with its loss, and its upkeep.
        config: optimizer, schedule and seed.
        batches: from the step to begin at, this worker's batches from there on.
        extend_to: go on to this many updates, at the schedule's last rates.
        resume: a state of :func:`save_state`, which is used up.
        reduce: the other workers.
        log: gets the metrics, before the task's upkeep.
        hooks: run in their order, after the upkeep.

    Returns:
        The weights' moving average, which the finished model takes.

    Raises:
        FloatingPointError: the loss is no longer finite; the step and the worst scale are named.
    """
    module = reduce.wrap(task.module)  # first: it may leave each worker a part of the weights
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
        parts, norm = _gradients(module, weights, batch, step, config, reduce)
        finite = bool(torch.isfinite(norm))  # the norm is global: all workers agree
        faults = 0 if finite else faults + 1
        if faults >= config.nonfinite_steps:
            raise FloatingPointError(_complaint(_means(parts, reduce), step + 1, faults))
        step += 1
        if finite:
            optimizer.step()
            ema.update()
            if log.due(step, last):
                metrics = {**_means(parts, reduce), **task.metrics(reduce)}
                if log.validates(step, last):
                    with ema.applied():
                        metrics |= {f"val_{name}": v for name, v in log.validate().items()}
                rates = {"lr": lr_at(config, step - 1), "grad_norm": float(norm)}
                log.write(step, {**metrics, **rates})
            with ema.following():
                task.after_step(batch, step - 1, reduce)
        state = partial(save_state, task, optimizer, ema, step, reduce)
        for hook in hooks:
            if hook.due(step, last, finite=finite):
                with ema.applied() if hook.with_average else nullcontext():
                    hook.run(step, state)
    return ema


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch in ``parts`` parts, whose sizes differ by one at most, that keep its global size."""
    chunks = zip(
        batch.inputs.tensor_split(parts), batch.labels_b.tensor_split(parts),
        batch.index_b.tensor_split(parts), strict=True,
    )  # fmt: skip
    return [Batch(*chunk, batch.global_size) for chunk in chunks]


def _gradients(
    module: nn.Module,
    weights: Sequence[nn.Parameter],
    batch: Batch,
    step: int,
    config: OptimConfig,
    reduce: Reduce,
) -> tuple[list[tuple[float, dict[str, Tensor]]], Tensor]:
    """The gradients of an update, clipped: what :func:`_backward` returns, and their norm."""
    clear_gradients(weights)
    parts = _backward(module, batch, step, config, reduce)
    grads = [weight.grad for weight in weights if weight.grad is not None]
    norm = reduce.whole(nn.utils.get_total_norm(grads))
    nn.utils.clip_grads_with_norm_(weights, config.clip or math.inf, norm)
    return parts, norm


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

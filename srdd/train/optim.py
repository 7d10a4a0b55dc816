"""Parameter groups, and learning rate and weight decay as functions of the step."""

import math

import torch
from torch import nn

from srdd.train.config import OptimConfig

_NO_DECAY = ("pos_start", "pos_embed", "level_embed", "log_scale", "ada_gss", "codebook")


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms, positions and the codebook are not decayed (VAR's rule)."""
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            plain = parameter.dim() < 2 or any(word in name for word in _NO_DECAY)
            (rest if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas)


def set_rates(optimizer: torch.optim.Optimizer, config: OptimConfig, step: int) -> None:
    """Give an optimizer of :func:`build_optimizer` its rates for update ``step``."""
    for group in optimizer.param_groups:
        group["lr"] = lr_at(config, step)
    optimizer.param_groups[0]["weight_decay"] = weight_decay_at(config, step)


def lr_at(config: OptimConfig, step: int) -> float:
    """The learning rate of update ``step`` (from 0): linear warm-up, then the schedule.

    As VAR's ``lr_control.py``: "linear" is its lin00, and with hold = 0.05 its lin0. Beyond the
    last update of the schedule the rate stays what it was there.
    """
    step = min(step, config.steps - 1)
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        first = config.warmup_start
        share = first + (1 - first) * step / warmup if first else (step + 1) / warmup
        return config.peak_lr * share
    if config.lr_schedule == "constant":
        return config.peak_lr
    progress = (step - warmup) / max(1, config.steps - 1 - warmup)
    if progress < config.hold:
        return config.peak_lr
    if config.lr_schedule == "linear":
        share = (1 - progress) / (1 - config.hold)
    else:
        fall = (progress - config.hold) / (1 - config.hold)
        share = 0.5 * (1 + math.cos(math.pi * fall))
    return config.peak_lr * (config.final_lr + (1 - config.final_lr) * share)


def weight_decay_at(config: OptimConfig, step: int) -> float:
    """The weight decay of update ``step``: half a cosine from the first to the final value."""
    first, last = config.weight_decay, config.final_weight_decay
    if last is None:
        return first
    progress = min(step, config.steps - 1) / max(1, config.steps - 1)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))

"""Parameter groups and the learning rate as a function of the step."""

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
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def lr_at(config: OptimConfig, step: int) -> float:
    """The learning rate of update ``step`` (from 0): linear warm-up, then the schedule."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - 1 - warmup)
    if config.lr_schedule == "constant":
        return config.lr
    if config.lr_schedule == "linear":
        share = 1 - progress
    else:
        share = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr + (1 - config.final_lr) * share)

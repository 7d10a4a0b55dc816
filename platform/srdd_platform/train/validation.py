"""What a model reaches on the held-out split."""

import torch

from srdd.train.task import Task
from srdd_platform.train.data import TrainingData


@torch.no_grad()
def validate(task: Task, data: TrainingData) -> dict[str, float]:
    """Validation numbers of a task: at most 10,000 held-out images, each its centre."""
    task.module.eval()
    try:
        return task.validate(data.held_out(task.device))
    finally:
        task.module.train()

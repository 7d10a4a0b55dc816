"""Print the bytes that two updates of the cifar10 tokenizer add to a process: IMAGES PARTS."""

import ctypes
import gc
import sys
from dataclasses import replace

import torch

from srdd.presets import cifar10
from srdd.train.loop import fit
from srdd.train.task import Batch
from srdd.train.var.tokenizer_task import TokenizerTask

torch.set_num_threads(1)
preset = cifar10()


def train(images, parts, steps):
    optim = replace(preset.tokenizer_optim, steps=steps, batch_size=images, accumulate=parts)
    inputs = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    batch = Batch(inputs, torch.zeros(images, dtype=torch.int64), torch.arange(images), images)
    task = TokenizerTask(preset.tokenizer, preset.tokenizer_loss, optim)
    fit(task, optim, lambda step: iter([batch] * steps))


def most():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


train(1, 1, 1)  # libraries and their tables
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = most()
train(int(sys.argv[1]), int(sys.argv[2]), 2)
print(most() - before)

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srdd.generator import sample
from srdd.images import grid, to_uint8
from srdd.load import load_pipeline
from srdd.metrics.classifier import ClassifierConfig
from srdd.presets import digits
from srdd.rng import image_seeds
from srdd.train.classifier import ClassifierTask
from srdd.train.config import OptimConfig, TokenizerLossConfig, TransformerLossConfig
from srdd.train.ema import finished_weights
from srdd.train.loop import Hook, checkpoint_hook, fit
from srdd.train.previews import grid_labels
from srdd.train.task import Batch, Task
from srdd.train.var.tokenizer_task import TokenizerTask
from srdd.train.var.transformer_task import TransformerTask
from srdd.var.pipeline import load_tokenizer
from srdd_platform.core.images import to_png
from srdd_platform.data.dataset import ShardDataset, load_arrays
from srdd_platform.train.data import ImageData
from srdd_platform.train.previews import draw, grid_path, grid_steps

OPTIM = OptimConfig(steps=6, batch_size=8, ema=0.5, lr=1e-2, seed=3)
TOKENIZER = replace(digits().tokenizer, ch=8)


def train(task: Task, inputs: Tensor, data: Path | None, run: Path) -> dict[str, Tensor]:
    """Train six steps, with a grid every two where there are data; returns all of the state."""

    def batches(step: int) -> Iterator[Batch]:
        for at in range(step, OPTIM.steps):
            index = torch.arange(8) + 8 * at
            yield Batch(inputs[index], torch.arange(8), index, 8)

    def preview(step: int) -> None:
        if data is not None:
            draw(task, ImageData(partial(ShardDataset, data)).spread, grid_path(run, step))

    states = []
    hooks = [
        Hook(run=lambda step, _: preview(step), every=2, with_average=True),
        checkpoint_hook(100, lambda step, state: states.append(state)),
    ]
    torch.manual_seed(5)
    ema = fit(task, OPTIM, batches, hooks=hooks)
    with ema.applied():
        preview(OPTIM.steps)
    drawn = {"generator": torch.random.get_rng_state()}
    own = {f"own.{name}": value for name, value in task.module.state_dict().items()}
    return {**drawn, **own, **finished_weights(states[0])}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def png(path: Path) -> bytes:
    return path.read_bytes()


def test_a_tokenizers_grids_show_originals_above_reconstructions_and_change_nothing(
    digits_shards: Path, tmp_path: Path
) -> None:
    images, _ = load_arrays(digits_shards, "train")
    plain = TokenizerTask(TOKENIZER, TokenizerLossConfig(restart_every=3), OPTIM)
    drawn = TokenizerTask(TOKENIZER, TokenizerLossConfig(restart_every=3), OPTIM)
    expected = train(plain, images, None, tmp_path)
    found = train(drawn, images, digits_shards, tmp_path)
    assert equal(found, expected)
    assert drawn.module.used_SV.equal(plain.module.used_SV)
    assert list(grid_steps(tmp_path)) == [2, 4, 6]
    assert png(grid_path(tmp_path, 2)) != png(grid_path(tmp_path, 4))

    plain.module.load_state_dict(
        {k: v for k, v in expected.items() if k in plain.module.state_dict()}
    )
    held_out = ShardDataset(digits_shards, "val")
    picks = torch.stack([held_out[36 * i]["image"] for i in range(10)])
    tokenizer = plain.tokenizer.eval()
    again = tokenizer.decode(tokenizer.encode(picks.float() / 127.5 - 1))
    both = torch.cat((picks, to_uint8((again + 1) / 2)))
    assert png(grid_path(tmp_path, 6)) == to_png(grid(both, 10))


@pytest.mark.parametrize("unconditional", [False, True])
def test_a_transformers_grids_are_the_samples_of_the_averaged_weights_and_change_nothing(
    digits_shards: Path, tiny_pipeline: Path, tmp_path: Path, unconditional: bool
) -> None:
    tokenizer = load_tokenizer(tiny_pipeline / "tokenizer")
    config = load_pipeline(tiny_pipeline).transformer.config
    if unconditional:
        config = replace(config, unconditional=True, num_classes=1)
    plain, drawn = (
        TransformerTask(config, TransformerLossConfig(), OPTIM, tokenizer, init_head=6.0)
        for _ in range(2)
    )
    codes = torch.randint(0, 32, (64, 30), generator=torch.Generator().manual_seed(0))
    expected = train(plain, codes, None, tmp_path)
    found = train(drawn, codes, digits_shards, tmp_path)
    assert equal(found, expected)
    assert list(grid_steps(tmp_path)) == [2, 4, 6]

    plain.module.load_state_dict(
        {k: v for k, v in expected.items() if k in plain.module.state_dict()}
    )
    names = ("image",) if unconditional else load_pipeline(tiny_pipeline).class_names
    finished = replace(
        load_pipeline(tiny_pipeline), transformer=plain.model.eval(), class_names=names
    )
    labels = torch.arange(20) % len(names)
    images = sample(finished, labels, finished.sampler, image_seeds(3, 0, 20)).images
    assert png(grid_path(tmp_path, 6)) == to_png(grid(to_uint8(images), 10))
    assert png(grid_path(tmp_path, 2)) != png(grid_path(tmp_path, 6))


def test_classes_take_turns_or_are_spread_evenly() -> None:
    assert grid_labels(10) == [*range(10), *range(10)]
    assert grid_labels(3)[:4] == [0, 1, 2, 0]
    assert grid_labels(1000) == list(range(0, 1000, 50))


def test_a_classifier_has_no_grid(digits_shards: Path, tmp_path: Path) -> None:
    task = ClassifierTask(ClassifierConfig(num_classes=10, resolution=16), OPTIM)
    draw(task, ImageData(partial(ShardDataset, digits_shards)).spread, tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []

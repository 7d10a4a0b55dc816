"""What presets say of themselves, and the models that trainings make of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from srdd.errors import UserError
from srdd.presets import PRESETS, cifar10, digits, get_preset, var_size
from srdd.train.var.transformer_task import TransformerTask
from srdd.var.config import TransformerConfig
from srdd.var.official.published import VAR_256
from srdd.var.pipeline import load_tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd_platform.cli.convert import Convert
from srdd_platform.data.code_places import codes_dir
from srdd_platform.data.codes import Extraction, encode_shard
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.recipes import RECIPES
from srdd_platform.data.shards import prepare
from srdd_platform.train.job import make_job
from srdd_platform.train.options import TransformerOptions

PAPER = ("mini-imagenet", "sun397", "ffhq", "afhq")


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_sets_train_for_200_epochs_of_what_their_recipes_give(name: str) -> None:
    preset, counts = get_preset(name), RECIPES[name].counts[0]
    assert name in PRESETS
    optim = preset.transformer_optim
    assert abs(optim.steps * 224 - 200 * counts.train) <= 112
    assert (optim.batch_size, optim.peak_lr, optim.clip) == (224, 1e-4, 1.0)
    assert (optim.betas, optim.weight_decay) == ((0.9, 0.95), 0.05)
    assert preset.tokenizer.resolution == RECIPES[name].resolution
    assert preset.tokenizer.patch_nums == VAR_256
    assert (preset.tokenizer.vocab_size, preset.tokenizer.z_channels) == (4096, 32)
    assert (preset.transformer.depth, preset.transformer.width) == (16, 1024)
    assert f"{counts.train:,} images, {optim.steps:,} updates" in (PRESETS[name].__doc__ or "")


def _cost(config: TransformerConfig) -> tuple[float, float]:
    """Trained weights in millions; GFLOP an image, forward and backward."""
    with torch.device("meta"):
        model = ScaleTransformer(config).train()
        codes_BL = torch.zeros(2, config.schedule.length, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            logits = model(torch.zeros(2, dtype=torch.int64), codes_BL)
            F.cross_entropy(logits.flatten(0, 1), codes_BL.flatten()).backward()
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return weights / 1e6, counter.get_total_flops() / 2e9


@pytest.mark.parametrize(("depth", "weights", "gflop"), [(5, 9.7, 5.1), (8, 38.7, 20.2)])
def test_sizes_for_cifar10(depth: int, weights: float, gflop: float) -> None:
    assert _cost(var_size(cifar10().transformer, depth)) == (
        pytest.approx(weights, abs=0.05),
        pytest.approx(gflop, abs=0.06),
    )


def test_size_of_the_papers() -> None:
    assert _cost(get_preset("mini-imagenet").transformer)[1] == pytest.approx(861, abs=0.5)


def test_depth_sets_vars_size(tiny_pipeline: Path, digits_shards: Path, tmp_path: Path) -> None:
    def job(depth: int | None) -> TransformerConfig:
        options = TransformerOptions(depth=depth)
        made = make_job(
            "transformer", digits(), digits_shards, tmp_path, options, tokenizer=tiny_pipeline
        )
        assert isinstance(made.model, TransformerConfig)
        return made.model

    large = job(6)
    assert (large.depth, large.width, large.num_heads) == (6, 384, 6)
    assert large.drop_path == pytest.approx(0.025)
    assert job(None).width == digits().transformer.width
    with pytest.raises(UserError, match="depth must be positive"):
        job(0)


def test_a_converted_pipelines_tokenizer_is_trained_on(
    tiny_official: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Small weights in VAR's names; the pipeline's directory, its tokenizer's, and a run of it."""
    files = [tmp_path / "vae.safetensors", tmp_path / "var.safetensors"]
    for path, prefix in zip(files, ("vqvae", "var"), strict=True):
        save_file(tiny_official[prefix], path)
    out, sides = tmp_path / "official", (1, 2, 3, 4, 6)
    command = Convert(
        vae=files[0], transformer=files[1], out=out, patch_nums=",".join(map(str, sides))
    )
    command.run(Console(quiet=True))
    data = tmp_path / "data"
    prepare(source="digits", resolution=12, out=data, workers=1)
    shard = Manifest.load(data).splits["val"].shards[0].name
    extraction = Extraction(data=str(data), tokenizer=str(out))
    assert encode_shard(extraction, "val", shard, tmp_path / "codes.safetensors") == 360
    codes = load_file(tmp_path / "codes.safetensors")["codes"]
    assert codes.shape == (360, sum(side * side for side in sides))
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    for part in ("tokenizer", "transformer"):
        (run / "model" / part).symlink_to(out / part)
    places = {
        path: codes_dir(data, path)
        for path in (out, out / "tokenizer", run, run / "model", run / "model" / "tokenizer")
    }
    assert {place.name for place in places.values()} == {places[out].name}
    assert places[out].parent == places[out / "tokenizer"].parent == out / "codes"
    assert {place.parent for path, place in places.items() if run in (path, *path.parents)} == {
        run / "codes"
    }
    preset = replace(digits(), tokenizer=load_tokenizer(out / "tokenizer").config)
    job = make_job("transformer", preset, data, tmp_path, TransformerOptions(), tokenizer=out)
    task = job.build_task()
    assert isinstance(task, TransformerTask)
    own = task.model.quantizer.state_dict()["codebook.weight"]
    assert torch.equal(own, tiny_official["vqvae"]["quantize.embedding.weight"])

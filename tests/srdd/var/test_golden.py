"""A tiny VAR and what a second, plain implementation computed (``tests/data/make_golden.py``)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from srdd import Pipeline, SamplerConfig, sample
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.masks import Mask
from srdd.var.official.names import from_var, from_vqvae
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

PATH = Path(__file__).resolve().parents[2] / "data" / "golden_tiny.safetensors"
BOTH: list[Mask] = ["block_causal", "markov"]
Golden = tuple[dict[Mask, Pipeline], dict[str, Tensor]]


@pytest.fixture(scope="module")
def golden() -> Golden:
    """A pipeline for each mask over the same weights, and the recorded values."""
    parts: dict[str, dict[str, Tensor]] = {"vqvae": {}, "var": {}, "io": {}}
    with safe_open(PATH, "pt") as file:
        config = json.loads(file.metadata()["config"])
        for name in file.keys():
            prefix, rest = name.split(".", 1)
            parts[prefix][rest] = file.get_tensor(name)
    sides = tuple(config["patch_nums"])
    shared = {name: config[name] for name in ("vocab_size", "z_channels")}
    tokenizer = Tokenizer(
        TokenizerConfig(
            resolution=config["resolution"], patch_nums=sides, ch=config["ch"],
            ch_mult=tuple(config["ch_mult"]), num_res_blocks=config["num_res_blocks"], **shared,
        )
    )  # fmt: skip
    ours = from_vqvae(parts["vqvae"])
    tokenizer.load_state_dict(ours)
    pipelines: dict[Mask, Pipeline] = {}
    for mask in BOTH:
        widths = {name: config[name] for name in ("num_classes", "depth", "width", "num_heads")}
        model = ScaleTransformer(TransformerConfig(patch_nums=sides, mask=mask, **widths, **shared))
        model.load_state_dict(from_var(parts["var"], ours))
        names = tuple(map(str, range(config["num_classes"])))
        pipelines[mask] = Pipeline(
            tokenizer.eval().requires_grad_(False),
            model.eval().requires_grad_(False),
            SamplerConfig(),
            names,
        )
    return pipelines, parts["io"]


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_the_file_is_small_and_its_weights_are_open(golden: Golden) -> None:
    pipelines, io = golden
    assert PATH.stat().st_size < 500_000
    apart = (io["block_causal.logits"] - io["markov.logits"])[:, -36:]
    assert apart.abs().mean() > 0.1  # or any mask would do
    assert (
        pipelines["markov"].tokenizer.quantizer.phi.conv_of[3] == 2
    )  # a tie that rounding decides


def test_tokenizer(golden: Golden) -> None:
    pipelines, io = golden
    tokenizer = pipelines["markov"].tokenizer
    _close(tokenizer.latent(io["image"]), io["latent"])
    assert torch.equal(tokenizer.encode(io["image"]), io["codes"])
    _close(tokenizer.quantizer.decode(io["codes"]), io["f_hat"])
    _close(tokenizer.decode(io["codes"]), io["reconstruction"])
    first = sum(tokenizer.quantizer.increments(io["codes"])[:3])
    _close(tokenizer.decode_latent(first), io["reconstruction_scale2"])
    assert len(io["codes"].unique()) > 10


@pytest.mark.parametrize("mask", BOTH)
def test_teacher_forced_logits(golden: Golden, mask: Mask) -> None:
    pipelines, io = golden
    model = pipelines[mask].transformer
    _close(model.quantizer.teacher_input(io["codes"]), io["teacher_input"])
    _close(model(io["labels"][:2], io["codes"]), io[f"{mask}.logits"])


@pytest.mark.parametrize("mask", BOTH)
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("greedy", SamplerConfig(cfg=2.0, top_k=1)),
        ("sampled", SamplerConfig(cfg=1.5, top_k=20, top_p=0.9)),
        ("pruned", SamplerConfig(cfg=1.5, patch_nums=(1, 3, 6))),
        ("updated", SamplerConfig(cfg=1.0, refine_steps=2, resample_threshold=0.1)),
        ("kept", SamplerConfig(cfg=1.0, refine_steps=2, resample_threshold=0.1, feedback="kept")),
        ("none", SamplerConfig(cfg=1.0, refine_steps=2, resample_threshold=0.1, feedback="none")),
    ],
)
def test_sampled_codes(golden: Golden, mask: Mask, name: str, config: SamplerConfig) -> None:
    pipelines, io = golden
    result = sample(pipelines[mask], io["labels"], config, io["seeds"])
    assert torch.equal(result.codes_BL, io[f"{mask}.{name}"])


def test_the_recorded_codes_tell_the_settings_apart(golden: Golden) -> None:
    _, io = golden
    names = ["greedy", "sampled", "updated", "kept", "none"]
    codes = [io[f"{mask}.{name}"] for mask in BOTH for name in names]
    for i, one in enumerate(codes):
        assert not any(torch.equal(one, other) for other in codes[:i])

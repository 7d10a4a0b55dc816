"""A tiny official VAR (random weights) and what its own code computed with them."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from srdd import Pipeline, SamplerConfig, sample
from srdd.config import TokenizerConfig, TransformerConfig
from srdd.official import from_var, from_vqvae
from srdd.tokenizer import Tokenizer
from srdd.transformer import ScaleTransformer

Golden = tuple[Pipeline, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def golden(golden_official: Path) -> Golden:
    """The pipeline with the golden weights, and the recorded inputs and outputs."""
    with safe_open(golden_official, "pt") as file:
        meta = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    parts: dict[str, dict[str, torch.Tensor]] = {"vqvae": {}, "var": {}, "io": {}}
    for name, tensor in tensors.items():
        prefix, rest = name.split(".", 1)
        parts[prefix][rest] = tensor
    patch_nums = tuple(meta["patch_nums"])
    shared = {"patch_nums": patch_nums, "vocab_size": meta["vocab_size"]}
    tokenizer = Tokenizer(
        TokenizerConfig(
            resolution=64, ch=meta["ch"], ch_mult=tuple(meta["ch_mult"]),
            z_channels=meta["z_channels"], **shared,
        )
    )  # fmt: skip
    ours = from_vqvae(parts["vqvae"])
    tokenizer.load_state_dict(ours)
    model = ScaleTransformer(
        TransformerConfig(
            mask="block_causal", num_classes=meta["num_classes"], depth=meta["depth"],
            width=meta["embed_dim"], num_heads=meta["num_heads"],
            z_channels=meta["z_channels"], **shared,
        )
    )  # fmt: skip
    model.load_state_dict(from_var(parts["var"], ours))
    names = tuple(str(i) for i in range(meta["num_classes"]))
    return Pipeline(tokenizer.eval(), model.eval(), SamplerConfig(), names), parts["io"]


def test_tokenizer_gives_the_official_codes_and_latent(golden: Golden) -> None:
    pipeline, io = golden
    codes_BL = pipeline.tokenizer.encode(io["image"])
    assert torch.equal(codes_BL, io["codes"])
    with torch.no_grad():
        latent = pipeline.tokenizer.latent(io["image"])
    torch.testing.assert_close(latent, io["latent"], atol=1e-4, rtol=0)


def test_decoder_gives_the_official_reconstruction(golden: Golden) -> None:
    pipeline, io = golden
    images = pipeline.tokenizer.decode(io["codes"])
    torch.testing.assert_close(images, io["reconstruction_scale3"], atol=1e-4, rtol=0)
    first = pipeline.tokenizer.quantizer.increments(io["codes"])[0]
    coarse = pipeline.tokenizer.decode_latent(first)
    torch.testing.assert_close(coarse, io["reconstruction_scale0"], atol=1e-4, rtol=0)


def test_teacher_forcing_gives_the_official_logits(golden: Golden) -> None:
    pipeline, io = golden
    with torch.no_grad():
        tokens = pipeline.transformer.quantizer.teacher_input(io["codes"])
        logits = pipeline.transformer(io["labels"], io["codes"])
    torch.testing.assert_close(tokens, io["teacher_input"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, io["logits"], atol=1e-4, rtol=0)
    loss = F.cross_entropy(logits.flatten(0, 1), io["codes"].flatten())
    assert loss.item() == pytest.approx(io["cross_entropy"].item(), abs=1e-4)


@pytest.mark.parametrize("cfg", [1.5, 4.0])
def test_greedy_sampling_gives_the_official_codes_and_images(golden: Golden, cfg: float) -> None:
    pipeline, io = golden
    result = sample(pipeline, io["labels"], SamplerConfig(cfg=cfg, top_k=1), [1, 2])
    assert torch.equal(result.codes_BL, io[f"greedy_codes_cfg{cfg}"])
    expected = io[f"greedy_image_cfg{cfg}"]
    if expected.min() < 0:
        expected = (expected + 1) / 2
    torch.testing.assert_close(result.images, expected, atol=1e-4, rtol=0)

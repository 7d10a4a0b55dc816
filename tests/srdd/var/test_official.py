"""A tiny official VAR (random weights) and what its own code computed with them."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from srdd import Pipeline, SamplerConfig, sample
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.official.names import from_var, from_vqvae
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

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


def _official_draw(logits_BlV: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """VAR's draw: top-k, then top-p, then torch's own multinomial. [B, l, V] -> int64 [B, l]."""
    floor_Bl1 = logits_BlV.topk(20).values.amin(-1, keepdim=True)
    kept = logits_BlV.masked_fill(logits_BlV < floor_Bl1, -torch.inf)
    values, order = kept.sort(dim=-1)
    remove = values.softmax(-1).cumsum(-1) <= 1 - 0.9
    remove[..., -1] = False
    probs = kept.masked_fill(remove.scatter(-1, order, remove), -torch.inf).softmax(-1)
    return torch.multinomial(probs.flatten(0, 1), 1, generator=rng).view(probs.shape[:2])


@pytest.mark.parametrize("cfg", [1.5, 4.0])
def test_with_the_official_draws_our_logits_give_the_official_codes(
    golden: Golden, cfg: float
) -> None:
    """Teacher-forced step by step: what follows the codes drawn so far cannot matter."""
    pipeline, io = golden
    model, labels_B = pipeline.transformer, io["labels"]
    both_B = torch.cat((labels_B, torch.full_like(labels_B, model.null_class)))
    rng = torch.Generator().manual_seed(7)
    codes_BL = torch.zeros(len(labels_B), model.schedule.length, dtype=torch.int64)
    for scale, (begin, end) in enumerate(model.schedule.spans):
        with torch.no_grad():
            logits = model(both_B, codes_BL.repeat(2, 1))[:, begin:end]
        cond, uncond = logits.chunk(2)
        weight = cfg * scale / (model.schedule.num_scales - 1)
        codes_BL[:, begin:end] = _official_draw((1 + weight) * cond - weight * uncond, rng)
    recorded = io[f"sampled_codes_cfg{cfg}_seed7_topk20_topp0.9"]
    assert torch.equal(codes_BL, recorded)
    assert not torch.equal(recorded, io[f"greedy_codes_cfg{cfg}"])

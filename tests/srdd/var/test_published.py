"""The published sizes: parameters, key layouts, schedules. On the meta device, so in seconds."""

import re
from collections.abc import Callable

import pytest
import torch

from srdd.errors import UserError
from srdd.var.official.convert import build_pipeline, tokenizer_source, transformer_source
from srdd.var.official.names import to_var, to_vqvae
from srdd.var.official.published import (
    HMAR_1024,
    PATCH_NUMS,
    VAR_256,
    VAR_512,
    get_published,
    var,
    vqvae,
)
from srdd.var.phi import PhiBank
from srdd.var.scales import ScaleSchedule
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

# The layout of the published files, as FoundationVision/VAR builds it.
BLOCK = {
    "attn.scale_mul_1H11": "1 H 1 1",
    "attn.q_bias": "W",
    "attn.v_bias": "W",
    "attn.zero_k_bias": "W",
    "attn.mat_qkv.weight": "3W W",
    "attn.proj.weight": "W W",
    "attn.proj.bias": "W",
    "ffn.fc1.weight": "4W W",
    "ffn.fc1.bias": "4W",
    "ffn.fc2.weight": "W 4W",
    "ffn.fc2.bias": "W",
}
TOP = {
    "pos_start": "1 1 W",
    "pos_1LC": "1 L W",
    "word_embed.weight": "W 32",
    "word_embed.bias": "W",
    "class_emb.weight": "1001 W",
    "lvl_embed.weight": "10 W",
    "head_nm.ada_lin.1.weight": "2W W",
    "head_nm.ada_lin.1.bias": "2W",
    "head.weight": "4096 W",
    "head.bias": "4096",
    "lvl_1L": "1 L",
    "attn_bias_for_masking": "1 1 L L",
}
ADA, SHARED = {"ada_lin.1.weight": "6W W", "ada_lin.1.bias": "6W"}, {"ada_gss": "1 1 6 W"}
SHARED_TOP = {"shared_ada_lin.1.weight": "6W W", "shared_ada_lin.1.bias": "6W"}
SIZES = {
    "var-d16": (16, 680, 310.28, 220),
    "var-d20": (20, 680, 600.92, 272),
    "var-d24": (24, 680, 1033.4, 324),
    "var-d30": (30, 680, 2010.0, 402),
    "var-d36": (36, 2240, 2353.9, 446),
}


def layout(depth: int, length: int, shared: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a published transformer's file."""
    block = {**BLOCK, **(SHARED if shared else ADA)}
    names = {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}
    names |= TOP | (SHARED_TOP if shared else {})
    sizes = {"W": 64 * depth, "H": depth, "L": length}

    def size(word: str) -> int:
        factor, letter = re.fullmatch(r"(\d*)([WHL]?)", word).groups()
        return int(factor or 1) * sizes.get(letter, 1)

    return {name: tuple(map(size, shape.split())) for name, shape in names.items()}


def on_meta(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.device("meta"):
        return build()


def millions(model: torch.nn.Module) -> float:
    """Parameters but for the frozen copy of the tokenizer's quantizer in a transformer."""
    counted = (
        parameter.numel()
        for name, parameter in model.named_parameters()
        if isinstance(model, Tokenizer) or not name.startswith("quantizer.")
    )
    return sum(counted) / 1e6


@pytest.mark.parametrize("name", SIZES)
def test_a_published_size_has_its_parameters_and_the_official_layout(name: str) -> None:
    depth, length, size, tensors = SIZES[name]
    _, config = get_published(name)
    model = on_meta(lambda: ScaleTransformer(config))
    assert millions(model) == pytest.approx(size, abs=0.05 if size > 1000 else 0.005)
    expected = layout(depth, length, name == "var-d36")
    assert len(expected) == tensors
    assert {key: tuple(t.shape) for key, t in to_var(model).items()} == expected


def test_the_published_tokenizer() -> None:
    model = on_meta(lambda: Tokenizer(vqvae()))
    assert millions(model) == pytest.approx(108.95, abs=0.005)
    state = to_vqvae(model)
    assert len(state) == 324
    shapes = {
        "encoder.conv_in.weight": (160, 3, 3, 3),
        "encoder.down.4.block.0.nin_shortcut.weight": (640, 320, 1, 1),
        "encoder.down.4.attn.1.qkv.weight": (1920, 640, 1, 1),
        "encoder.conv_out.weight": (32, 640, 3, 3),
        "decoder.up.3.block.0.nin_shortcut.weight": (320, 640, 1, 1),
        "decoder.up.1.upsample.conv.weight": (160, 160, 3, 3),
        "decoder.up.4.attn.2.proj_out.bias": (640,),
        "quant_conv.weight": (32, 32, 3, 3),
        "quantize.embedding.weight": (4096, 32),
        "quantize.quant_resi.qresi_ls.3.weight": (32, 32, 3, 3),
        "quantize.ema_vocab_hit_SV": (10, 4096),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize("name", SIZES)
def test_full_size_layouts_are_recognised(name: str) -> None:
    depth, length, _, _ = SIZES[name]
    files = layout(depth, length, name == "var-d36")
    state = {key: torch.empty(shape, device="meta") for key, shape in files.items()}
    vae = to_vqvae(on_meta(lambda: Tokenizer(vqvae())))
    for key in vae:  # the copies of the codebook are compared, so these need values
        if key.startswith("quantize."):
            vae[key] = torch.zeros(vae[key].shape)
    pipeline = build_pipeline(tokenizer_source(vae, "v"), transformer_source(state, "t"))
    assert (pipeline.tokenizer.config, pipeline.transformer.config) == get_published(name)
    assert pipeline.tokenizer.config.resolution == (512 if name == "var-d36" else 256)


def test_published_lengths() -> None:
    assert PATCH_NUMS == {680: VAR_256, 2240: VAR_512, 9451: HMAR_1024}
    assert get_published("var-d16", "markov")[1] == var(16, mask="markov")
    with pytest.raises(UserError, match="no published size 'var-d17'; there are var-d16, var-d20"):
        get_published("var-d17")


@pytest.mark.parametrize(
    ("num_phi", "expected"),
    [
        (4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),  # 3 and 10 are ties that rounding decides
        (1, [0] * 10),
        (10, list(range(10))),
        (5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
    ],
)
def test_each_scale_has_the_phi_that_var_gives_it(num_phi: int, expected: list[int]) -> None:
    bank = PhiBank(ScaleSchedule(VAR_256), 1, num_phi)
    assert [bank.conv_of[side] for side in VAR_256] == expected


def test_one_phi_a_scale_is_exact_for_every_number_of_scales() -> None:
    for num in range(1, 15):
        bank = PhiBank(ScaleSchedule(tuple(range(1, num + 1))), 1, num)
        assert list(bank.conv_of.values()) == list(range(num))

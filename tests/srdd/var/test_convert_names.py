"""Official names, shapes and schedules, without files."""

import collections
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from srdd import Pipeline, sample
from srdd.errors import UserError
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.mask_tensors import build_mask
from srdd.var.masks import Mask
from srdd.var.official.convert import Source, build_pipeline, tokenizer_source, transformer_source
from srdd.var.official.names import map_transformer, to_var, to_vqvae

State = dict[str, Tensor]
Official = dict[str, State]
MakePipeline = Callable[..., Pipeline]
SIDES = (1, 2, 3, 4, 6)


def _phi(state: State, rename: Callable[[int], str | None]) -> State:
    """A tokenizer's state with its shared phis under other names."""
    found = {}
    for name, tensor in state.items():
        parts = re.match(r"quantize\.quant_resi\.qresi_ls\.(\d)\.(.*)", name)
        if parts is None:
            found[name] = tensor
        elif (prefix := rename(int(parts[1]))) is not None:
            found[f"quantize.quant_resi.{prefix}{parts[2]}"] = tensor
    return found


@pytest.mark.parametrize(
    ("rename", "num_phi", "back"),
    [
        (lambda k: f"qresi_ls.{k}.", 4, "qresi_ls.2.bias"),
        (lambda k: "qresi." if k == 1 else None, 1, "qresi.bias"),
        (lambda k: "" if k == 1 else None, 1, "qresi.bias"),  # vaex
        (lambda k: f"{k}.", 4, "qresi_ls.2.bias"),  # 4 of one a scale: read as the same phis
    ],
    ids=["shared", "one", "vaex", "unshared"],
)
def test_the_names_tell_how_phi_is_shared(
    tiny_official: Official, rename: Callable[[int], str | None], num_phi: int, back: str
) -> None:
    state = {
        **_phi(tiny_official["vqvae"], rename),
        "quantize.vocab_usage": torch.ones(48),
        "vocab_usage_record_times": 7,
    }
    pipeline = build_pipeline(
        tokenizer_source(state, "v"),
        transformer_source(tiny_official["var"], "t"),
        patch_nums=SIDES,
    )
    assert pipeline.tokenizer.config.num_phi == pipeline.transformer.config.num_phi == num_phi
    phi = pipeline.transformer.quantizer.phi.convs
    own = tiny_official["vqvae"]["quantize.quant_resi.qresi_ls.1.weight"]
    assert torch.equal(phi[min(1, num_phi - 1)].weight, own)
    assert f"quantize.quant_resi.{back}" in to_vqvae(pipeline.tokenizer)


def test_a_phi_for_each_of_five_scales_comes_back_unshared(tiny_official: Official) -> None:
    state = _phi(tiny_official["vqvae"], lambda k: f"{k}.")
    extra = {f"quantize.quant_resi.4.{n}": torch.randn(6, 6, 3, 3) for n in ("weight",)}
    state |= extra | {"quantize.quant_resi.4.bias": torch.randn(6)}
    pipeline = build_pipeline(
        tokenizer_source(state, "v"),
        transformer_source(tiny_official["var"], "t"),
        patch_nums=SIDES,
    )
    assert list(pipeline.tokenizer.quantizer.phi.conv_of.values()) == [0, 1, 2, 3, 4]
    back = to_vqvae(pipeline.tokenizer)
    assert back.keys() - state.keys() == {"quantize.ema_vocab_hit_SV"}
    assert all(torch.equal(tensor, back[name]) for name, tensor in state.items())


def _sources(parts: Official, **changes: Tensor | None) -> tuple[Source, Source]:
    """Sources of the tiny files, entries of the transformer replaced, or left out for None."""
    state = {**parts["var"], **{name.replace("__", "."): t for name, t in changes.items()}}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    return tokenizer_source(parts["vqvae"], "vae.pth"), transformer_source(kept, "var.pth")


def hmar(var_state: State) -> State:
    """The tiny transformer as HMAR keeps it: one block of the base, one for the next scale."""
    rules = (
        (r"^blocks\.0\.", "base_blocks.0."),
        (r"^blocks\.1\.", "ns_blocks.0."),
        (r"^head", "ns_head"),
        (r"^word_embed\.bias$", "word_embed_bias"),
    )
    found = {}
    for name, tensor in var_state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
        if name.startswith("ns_"):
            found[name.replace("ns_", "mask_", 1)] = tensor + 1
    return {**found, "mask_embed.weight": torch.ones(1, 32)}


@pytest.mark.parametrize(
    ("wrap", "mask", "recorded"),
    [
        (lambda s: s, "block_causal", "block_causal"),
        (lambda s: {"trainer": {"var_wo_ddp": s, "config": {}}, "epoch": 3}, "block_causal", ""),
        (lambda s: {"mvar_wo_ddp": s, "args": {}}, "markov_local", "markov"),
        (lambda s: {"trainer": {"mvar_wo_ddp": s}}, "markov_local", ""),
        (lambda s: {"trainer": {"transformer_wo_ddp": s}}, "markov", "markov"),
        (hmar, "markov", "markov"),
    ],
    ids=["var", "var-training", "mvar", "mvar-training", "hmar-training", "hmar"],
)
def test_each_layout_has_its_mask_and_gives_the_recorded_codes(
    tiny_official: Official, wrap: Callable[[State], State], mask: Mask, recorded: str
) -> None:
    """MVAR's window of 7 covers these small scales: it draws what ``markov`` does."""
    vae = tokenizer_source(tiny_official["vqvae"], "v")
    source = transformer_source(wrap(tiny_official["var"]), "t")
    pipeline = build_pipeline(vae, source, patch_nums=SIDES)
    assert pipeline.transformer.config == TransformerConfig(
        patch_nums=SIDES, mask=mask, num_classes=4, depth=2, width=32, num_heads=4, mlp_ratio=4.0,
        vocab_size=48, z_channels=6, num_phi=4,
    )  # fmt: skip
    assert pipeline.tokenizer.config == TokenizerConfig(
        resolution=12, patch_nums=SIDES, vocab_size=48, z_channels=6, ch=8, ch_mult=(1, 2),
        num_res_blocks=1,
    )  # fmt: skip
    assert pipeline.class_names == ("0", "1", "2", "3")
    if recorded:
        io = tiny_official["io"]
        config = type(pipeline.sampler)(cfg=2.0, top_k=1)
        codes_BL = sample(pipeline, io["labels"], config, io["seeds"]).codes_BL
        assert torch.equal(codes_BL, io[f"{recorded}.greedy"])


def test_hmar_leaves_out_its_mask_prediction_and_nothing_else(tiny_official: Official) -> None:
    mapped = map_transformer(hmar(tiny_official["var"]))
    assert set(mapped.origin.values()) == {
        name for name in hmar(tiny_official["var"]) if not name.startswith("mask_")
    }
    heads = collections.Counter(name.split(".")[0] for name in mapped.dropped)
    assert heads == {"mask_blocks": 12, "mask_head": 2, "mask_head_nm": 2, "mask_embed": 1}
    assert mapped.origin["blocks.1.attn.qkv.weight"] == "ns_blocks.0.attn.mat_qkv.weight"


def mask_prediction(var_state: State) -> State:
    """The tiny transformer as HMAR's trainer of masked codes keeps it: ``blocks`` alone."""
    renamed = {n.replace("word_embed.bias", "word_embed_bias"): t for n, t in var_state.items()}
    return {**renamed, "mask_embed.weight": torch.ones(1, 32)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"transformer_wo_ddp": state, "args": {}},
        lambda state: {"trainer": {"transformer_wo_ddp": state, "config": {}}, "epoch": 1},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    ],
    ids=["flat", "outer", "training", "ddp"],
)
def test_hmars_mask_prediction_is_refused_as_what_it_is(
    tiny_official: Official, wrap: Callable[[State], dict[str, object]]
) -> None:
    said = r"^t: this is HMAR's mask prediction, .*: give HMAR's next-scale checkpoint"
    with pytest.raises(UserError, match=said):
        transformer_source(wrap(mask_prediction(tiny_official["var"])), "t")


def test_sizes_come_from_the_tensors(make_pipeline: MakePipeline) -> None:
    """Every field that a file tells, at values no rule would guess."""
    own = make_pipeline(
        "previous", (2, 3, 5), depth=3, width=48, num_heads=6, mlp_ratio=2.5, num_classes=7,
        shared_aln=True,
    )  # fmt: skip
    vae = tokenizer_source(to_vqvae(own.tokenizer), "v")
    source = transformer_source(to_var(own.transformer), "t")
    found = build_pipeline(vae, source, patch_nums=(2, 3, 5), mask="previous")
    assert found.transformer.config == own.transformer.config
    assert found.tokenizer.config == own.tokenizer.config
    for ours, theirs in ((own.transformer, found.transformer), (own.tokenizer, found.tokenizer)):
        state = theirs.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(("given", "heads"), [(None, 2), (8, 8)], ids=["depth", "given"])
def test_heads_without_normed_attention(
    tiny_official: Official, given: int | None, heads: int
) -> None:
    """Files from before April 2024 have no scales of attention: the depth is the default."""
    bare = {f"blocks__{i}__attn__scale_mul_1H11": None for i in range(2)}
    pipeline = build_pipeline(*_sources(tiny_official, **bare), patch_nums=SIDES, num_heads=given)
    assert pipeline.transformer.config.num_heads == heads
    assert not pipeline.transformer.config.attn_l2_norm
    assert pipeline.transformer.layers[0].attn.softmax_scale == 0.25 / (32 / heads) ** 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"var.pth: L = 66 codes in 5 scales is no published schedule: give --patch-nums$"),
        ({"patch_nums": (1, 2, 3, 4)}, r"1,2,3,4 make 30 codes in 4 scales, .* has L = 66 in 5"),
        ({"patch_nums": (1, 4, 7)}, r"make 66 codes in 3 scales, the transformer has L = 66 in 5"),
        ({"patch_nums": (2, 1, 3)}, r"strictly increasing, got \[2, 1, 3\]"),
        ({"patch_nums": SIDES, "num_heads": 2}, "num_heads 2: scale_mul_1H11 is there for 4 heads"),
        ({"patch_nums": SIDES, "class_names": ["a"]}, "1 class names for 4 classes"),
    ],
)
def test_settings_that_do_not_fit(
    tiny_official: Official, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        build_pipeline(
            *_sources(tiny_official), **{"patch_nums": SIDES, **settings} if settings else {}
        )


def _levels(*sides: int) -> Tensor:
    """VAR's buffer lvl_1L."""
    counts = torch.tensor([side * side for side in sides])
    return torch.arange(len(sides)).repeat_interleave(counts)[None]


def test_the_files_own_levels_are_shown_and_must_agree(tiny_official: Official) -> None:
    """Two schedules may have one length and as many scales: 1,2,6,7,10 and 1,3,4,8,10."""
    said = r"no published schedule: give --patch-nums \(the file's lvl_1L says 1,2,3,4,6\)"
    with pytest.raises(UserError, match=said):
        build_pipeline(*_sources(tiny_official, lvl_1L=_levels(*SIDES)))
    changes = {"pos_1LC": torch.zeros(1, 190, 32), "lvl_1L": _levels(1, 2, 6, 7, 10)}
    sources = _sources(tiny_official, **changes)
    with pytest.raises(UserError, match=r"1,3,4,8,10: the file's lvl_1L says 1,2,6,7,10"):
        build_pipeline(*sources, patch_nums=(1, 3, 4, 8, 10))
    found = build_pipeline(*sources, patch_nums=(1, 2, 6, 7, 10))
    assert found.transformer.config.patch_nums == (1, 2, 6, 7, 10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {
                "blocks__1__attn__q_bias": None,
                "blocks__0__ffn__fc2__bias": None,
                "head2": torch.ones(1),
            },
            "missing blocks.0.ffn.fc2.bias, blocks.1.attn.q_bias; unknown head2",
        ),
        (
            {"blocks__1__attn__mat_qkv__weight": torch.zeros(96, 31)},
            r"shapes do not fit: blocks.1.attn.mat_qkv.weight \[96, 31\] \(needs \[96, 32\]\)",
        ),
        ({"blocks__7__attn__q_bias": torch.zeros(32)}, "missing blocks.2.ada_lin.1.bias"),
        ({"pos_start": torch.zeros(1, 4, 32)}, r"pos_start \[1, 4, 32\] \(needs \[1, 1, 32\]\)"),
        ({"class_emb__weight": None}, "there is no class_emb.weight"),
        ({"head__weight": torch.zeros(3)}, r"head.weight has shape \[3\]"),
        ({"head__weight": torch.zeros(50, 32)}, "is for 50 codes, vae.pth has 48"),
        ({"word_embed__weight": torch.zeros(32, 5)}, "is for 5 channels, vae.pth has 6"),
        ({"head__bias": torch.zeros(48, dtype=torch.int64)}, "head.bias is torch.int64"),
        ({"head__bias": torch.full((48,), torch.nan)}, "head.bias holds values .* not finite"),
        ({"blocks__0__attn__zero_k_bias": torch.ones(32)}, "blocks.0.attn.zero_k_bias is not zero"),
        ({"pos_1LC": None}, "there is no VAR, MVAR or HMAR transformer in it; its keys: blocks.0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tiny_official: Official, changes: dict[str, Tensor | None], said: str
) -> None:
    with pytest.raises(UserError, match=f"^var.pth: .*{said}") as caught:
        build_pipeline(*_sources(tiny_official, **changes), patch_nums=SIDES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_missing_keys_of_hmar_have_its_names(tiny_official: Official) -> None:
    state = hmar(tiny_official["var"])
    del state["ns_blocks.0.attn.q_bias"], state["base_blocks.0.ffn.fc1.bias"]
    vae = tokenizer_source(tiny_official["vqvae"], "v")
    said = "missing base_blocks.0.ffn.fc1.bias, ns_blocks.0.attn.q_bias$"
    with pytest.raises(UserError, match=said):
        build_pipeline(vae, transformer_source(state, "t"), patch_nums=SIDES)


def test_the_same_parameter_twice_is_refused(tiny_official: Official) -> None:
    state = {**hmar(tiny_official["var"]), "head.bias": torch.zeros(48)}
    with pytest.raises(UserError, match=r"ns_head.bias and head.bias are the same parameter"):
        transformer_source(state, "t")


def test_a_tokenizer_that_does_not_fit_is_named(tiny_official: Official) -> None:
    vae, source = tiny_official["vqvae"], transformer_source(tiny_official["var"], "t")
    changed = {**vae, "encoder.mid.attn_1.k.weight": torch.zeros(1)}
    del changed["quantize.quant_resi.qresi_ls.2.bias"], changed["decoder.conv_in.bias"]
    said = (
        "^v: the keys do not fit: missing decoder.conv_in.bias, "
        "quantize.quant_resi.qresi_ls.2.bias; unknown encoder.mid.attn_1.k.weight"
    )
    with pytest.raises(UserError, match=said):
        build_pipeline(tokenizer_source(changed, "v"), source, patch_nums=SIDES)
    with pytest.raises(UserError, match="this is the transformer: are the two files swapped"):
        tokenizer_source(tiny_official["var"], "v")
    with pytest.raises(UserError, match="this is the tokenizer: are the two files swapped"):
        transformer_source(vae, "t")


@pytest.mark.parametrize("mask", ["block_causal", "markov", "markov_local"])
def test_exported_buffers(make_pipeline: MakePipeline, mask: Mask) -> None:
    """As VAR registers them; the mask is the model's own."""
    model = make_pipeline(mask).transformer
    state = to_var(model)
    assert state["blocks.1.attn.scale_mul_1H11"].shape == (1, 4, 1, 1)
    assert state["lvl_1L"].dtype == torch.int64
    assert state["lvl_1L"].tolist() == [[0] + [1] * 4 + [2] * 9 + [3] * 16]
    seen = build_mask(mask, model.schedule)[None, None]
    assert torch.equal(state["attn_bias_for_masking"] == 0, seen)
    assert torch.equal(state["attn_bias_for_masking"] == -torch.inf, ~seen)
    assert torch.equal(state["blocks.2.attn.zero_k_bias"], torch.zeros(32))
    assert not any(name.startswith("quantizer.") for name in state)


def test_half_precision_becomes_float32_and_views_are_copied(tiny_official: Official) -> None:
    flat = torch.arange(96, dtype=torch.bfloat16)
    vae, source = _sources(tiny_official, head__bias=flat[48:])
    pipeline = build_pipeline(vae, source, patch_nums=SIDES)
    bias = pipeline.transformer.head.bias
    assert bias.dtype == torch.float32
    assert bias.tolist() == list(range(48, 96))
    assert bias.untyped_storage().nbytes() == 4 * 48

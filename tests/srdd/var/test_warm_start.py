"""Beginning with another model's weights: what is taken, what is new, what is refused."""

from dataclasses import replace

import pytest
import torch

from srdd.errors import UserError
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.train.var.transformer_task import TransformerTask
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd.var.warm_start import warm_start

CONFIG = TransformerConfig(
    patch_nums=(1, 2, 4), num_classes=3, depth=2, width=16, num_heads=2, vocab_size=16,
    z_channels=4, mask="block_causal",
)  # fmt: skip


def _model(config: TransformerConfig, seed: int, book: int = 0) -> ScaleTransformer:
    """A model with its own weights; ``book`` decides codebook and phi."""
    torch.manual_seed(book)
    tokenizer = Tokenizer(
        TokenizerConfig(
            resolution=8, patch_nums=config.patch_nums, vocab_size=16, z_channels=4, ch=8,
            ch_mult=(1, 2), num_res_blocks=1,
        )
    )  # fmt: skip
    optim = OptimConfig(steps=1, seed=seed)
    return TransformerTask(config, TransformerLossConfig(), optim, tokenizer).model


def test_another_mask_takes_everything() -> None:
    source, model = _model(CONFIG, 1), _model(replace(CONFIG, mask="markov"), 2)
    found = warm_start(model, source)
    given = source.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[name]), name
    assert found.new == found.unused == ()
    assert set(found.taken) == {name for name in given if not name.startswith("quantizer.")}


def test_other_classes_keep_the_null_row() -> None:
    source, model = _model(CONFIG, 1), _model(replace(CONFIG, num_classes=5), 2)
    before = model.class_emb.weight.detach().clone()
    found = warm_start(model, source)
    assert torch.equal(model.class_emb.weight[5], source.class_emb.weight[3])
    assert torch.equal(model.class_emb.weight[:5], before[:5])
    assert "class_emb.weight (null class)" in found.taken
    assert found.new == found.unused == ("class_emb.weight (others)",)
    alone = _model(replace(CONFIG, num_classes=1, unconditional=True), 2)
    warm_start(alone, source)
    assert torch.equal(alone.class_emb.weight[1], source.class_emb.weight[3])


def test_another_schedule_keeps_the_scales_both_have() -> None:
    """From 1, 2, 4 to 1, 3, 4: levels and positions of 1 and 4; those of 3 are new."""
    source, model = _model(CONFIG, 1), _model(replace(CONFIG, patch_nums=(1, 3, 4)), 2)
    with torch.no_grad():
        source.pos_embed.normal_()
    level, position = model.level_embed.weight.detach().clone(), model.pos_embed.detach().clone()
    found = warm_start(model, source)
    assert torch.equal(model.level_embed.weight[[0, 2]], source.level_embed.weight[[0, 2]])
    assert torch.equal(model.level_embed.weight[1], level[1])
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])
    assert torch.equal(model.pos_embed[:, 10:], source.pos_embed[:, 5:])
    assert torch.equal(model.pos_embed[:, 1:10], position[:, 1:10])
    assert torch.equal(model.pos_start, source.pos_start)
    assert torch.equal(model.head.weight, source.head.weight)
    assert {"level_embed.weight (scales 1, 4)", "pos_embed (scales 1, 4)"} < set(found.taken)
    assert found.new == found.unused == ("pos_embed (others)", "level_embed.weight (others)")


def test_a_pruned_schedule_leaves_nothing_new() -> None:
    source, model = _model(CONFIG, 1), _model(replace(CONFIG, patch_nums=(1, 4)), 2)
    found = warm_start(model, source)
    assert found.new == ()
    assert torch.equal(model.pos_embed[:, 1:], source.pos_embed[:, 5:])
    assert found.unused == ("pos_embed (others)", "level_embed.weight (others)")


def test_deeper_and_shallower_models() -> None:
    source, model = _model(CONFIG, 1), _model(replace(CONFIG, depth=3), 2)
    found = warm_start(model, source)
    assert all(name.startswith("blocks.2.") for name in found.new)
    assert torch.equal(model.layers[1].ffn.fc1.weight, source.layers[1].ffn.fc1.weight)
    back = warm_start(_model(CONFIG, 3), model)
    assert back.new == ()
    assert all(name.startswith("blocks.2.") for name in back.unused)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"width": 32}, "width: 16, not 32"), ({"num_heads": 4}, "num_heads: 2, not 4"),
     ({"attn_l2_norm": False}, "attn_l2_norm: True, not False")],
)  # fmt: skip
def test_other_shapes_are_refused(change: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        warm_start(_model(replace(CONFIG, **change), 2), _model(CONFIG, 1))  # type: ignore[arg-type]


def test_another_tokenizer_is_refused() -> None:
    """One code that differs, or one convolution's weight."""
    for part in ("codebook", "phi"):
        source = _model(CONFIG, 1)
        with torch.no_grad():
            next(getattr(source.quantizer, part).parameters()).view(-1)[-1] += 1e-3
        with pytest.raises(UserError, match=f"another tokenizer: quantizer.{part}"):
            warm_start(_model(CONFIG, 2), source)

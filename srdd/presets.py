"""Named configurations, each with what it costs and reaches."""

from dataclasses import dataclass, replace

from srdd.config import TokenizerConfig, TransformerConfig
from srdd.errors import UserError
from srdd.train.config import OptimConfig, TokenizerLossConfig, TransformerLossConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """All that a data set's models need; ``mask`` and ``num_classes`` are filled in later."""

    tokenizer: TokenizerConfig
    tokenizer_loss: TokenizerLossConfig
    tokenizer_optim: OptimConfig
    transformer: TransformerConfig
    transformer_loss: TransformerLossConfig
    transformer_optim: OptimConfig
    init_gate: float  # see srdd.train.transformer.init_weights
    classifier_optim: OptimConfig
    checkpoint_every: int  # steps


def var_size(config: TransformerConfig, depth: int) -> TransformerConfig:
    """A transformer of VAR's rule (``models/__init__.py``): width 64 d, d heads, drop path."""
    return replace(
        config, depth=depth, width=64 * depth, num_heads=depth, drop_path=0.1 * depth / 24
    )


def digits() -> Preset:
    """scikit-learn's digits at 16 px: minutes on two CPU cores."""
    patch_nums = (1, 2, 3, 4)
    return Preset(
        tokenizer=TokenizerConfig(
            resolution=16, patch_nums=patch_nums, vocab_size=128, z_channels=16,
            ch=16, ch_mult=(1, 2, 2), num_res_blocks=1,
        ),
        tokenizer_loss=TokenizerLossConfig(restart_vote="vector"),  # as its figures were measured
        tokenizer_optim=OptimConfig(steps=600, lr=3e-3, weight_decay=0.0),
        transformer=TransformerConfig(
            patch_nums=patch_nums, num_classes=10, depth=4, width=128, num_heads=4,
            vocab_size=128, z_channels=16,
        ),
        transformer_loss=TransformerLossConfig(label_drop=0.1),
        transformer_optim=OptimConfig(steps=500, lr=2e-3, weight_decay=0.1),
        init_gate=0.5,
        classifier_optim=OptimConfig(steps=300, lr=2e-3, weight_decay=0.01),
        checkpoint_every=50,
    )  # fmt: skip


def cifar10() -> Preset:
    """CIFAR-10 at 32 px, on an 8x8 latent."""
    patch_nums = (1, 2, 3, 4, 6, 8)
    return Preset(
        tokenizer=TokenizerConfig(
            resolution=32, patch_nums=patch_nums, vocab_size=512, z_channels=16,
            ch=32, ch_mult=(1, 2, 2), num_res_blocks=1,
        ),
        tokenizer_loss=TokenizerLossConfig(),
        tokenizer_optim=OptimConfig(steps=4000, lr=2e-3, weight_decay=0.0),
        transformer=var_size(
            TransformerConfig(
                patch_nums=patch_nums, num_classes=10, vocab_size=512, z_channels=16,
            ),
            depth=5,
        ),
        transformer_loss=TransformerLossConfig(label_drop=0.1),
        transformer_optim=OptimConfig(
            steps=3000, batch_size=32, lr=1e-3, ema=0.995, precision="bfloat16"
        ),
        init_gate=0.5,
        classifier_optim=OptimConfig(steps=1000, lr=2e-3, weight_decay=0.01),
        checkpoint_every=100,
    )  # fmt: skip


PRESETS = {"digits": digits, "cifar10": cifar10}


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()

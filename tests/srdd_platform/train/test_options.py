"""What the command line's options change in a preset's configuration."""

from dataclasses import fields

import pytest

from srdd.errors import UserError
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd_platform.train.options import Options, TransformerOptions


def test_what_is_not_given_is_the_presets() -> None:
    optim = OptimConfig(steps=7, lr=0.5, ema=0.9, compile=True, precision="bfloat16", clip=3.0)
    loss = TransformerLossConfig(label_drop=0.3, refine_share=0.5, scale_weights="lognorm")
    assert Options().apply(optim) == optim
    assert TransformerOptions().apply(optim) == optim
    assert TransformerOptions().apply_loss(loss) == loss


def test_what_is_given_replaces_it() -> None:
    optim = OptimConfig(steps=7, seed=3, clip=3.0)
    options = TransformerOptions(
        max_steps=9, seed=1, lr=1e-4, lr_batch=256, batch_size=512, lr_schedule="linear",
        warmup=0.02, warmup_start=0.005, hold=0.05, final_lr=0.1, weight_decay=0.0,
        final_weight_decay=0.08, clip=0.0, ema=0.99, accumulate=4, nonfinite_steps=2,
        precision="bfloat16", compile=True, recompute=True,
    )  # fmt: skip
    assert options.apply(optim) == OptimConfig(
        steps=9, seed=1, lr=1e-4, lr_batch=256, batch_size=512, lr_schedule="linear",
        warmup=0.02, warmup_start=0.005, hold=0.05, final_lr=0.1, weight_decay=0.0,
        final_weight_decay=0.08, clip=0.0, ema=0.99, accumulate=4, nonfinite_steps=2,
        precision="bfloat16", compile=True, recompute=True,
    )  # fmt: skip
    loss = TransformerOptions(
        label_drop=0.0, refine_share=0.25, scale_weights="lognorm", teacher_kl=0.5
    )
    assert loss.apply_loss(TransformerLossConfig()) == TransformerLossConfig(
        label_drop=0.0, refine_share=0.25, scale_weights="lognorm", teacher_kl=0.5
    )


def test_every_setting_has_an_option() -> None:
    options = {field.name for field in fields(TransformerOptions)} | {"betas", "steps"}
    for config in (OptimConfig, TransformerLossConfig):
        assert {field.name for field in fields(config)} <= options


@pytest.mark.parametrize(
    ("options", "named"),
    [({"extend_to": -1}, "--extend-to"), ({"validate_every": -2}, "--validate-every"),
     ({"workers": 0}, "--workers")],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, int], named: str) -> None:
    for kind in (Options, TransformerOptions):
        with pytest.raises(UserError, match=named):
            kind(**options)

"""Named configurations, each with what it costs and reaches."""

from dataclasses import dataclass, replace

from srdd.errors import UserError
from srdd.train.config import OptimConfig, TokenizerLossConfig, TransformerLossConfig
from srdd.var.config import TokenizerConfig, TransformerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """All that a data set's models need; ``mask`` and ``num_classes`` are filled in later."""

    tokenizer: TokenizerConfig
    tokenizer_loss: TokenizerLossConfig
    tokenizer_optim: OptimConfig
    transformer: TransformerConfig
    transformer_loss: TransformerLossConfig
    transformer_optim: OptimConfig
    init_gate: float  # see srdd.var.init.init_weights
    classifier_optim: OptimConfig
    checkpoint_every: int  # steps


def var_size(config: TransformerConfig, depth: int) -> TransformerConfig:
    """A transformer of VAR's rule (``models/__init__.py``): width 64 d, d heads, drop path."""
    return replace(
        config, depth=depth, width=64 * depth, num_heads=depth, drop_path=0.1 * depth / 24
    )


def digits() -> Preset:
    """scikit-learn's digits at 16 px: minutes on two CPU cores.

    ::

        make sweep  # all of it: see docs/digits.md for times and metrics, each with its command

        srdd data prepare --source digits --resolution 16 --out data/digits
        srdd train tokenizer   --preset digits --data data/digits --out runs/tokenizer
        srdd train transformer --preset digits --data data/digits --tokenizer runs/tokenizer \
                               --mask markov --out runs/markov
    """
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
    """CIFAR-10 at 32 px, on an 8x8 latent.

    ::

        srdd data prepare --recipe cifar10 --path cifar-10-batches-py --out data/cifar10
        srdd train tokenizer   --preset cifar10 --data data/cifar10 --out runs/tokenizer
        srdd train transformer --preset cifar10 --data data/cifar10 --tokenizer runs/tokenizer \
                               --mask markov --depth 5 --out runs/markov

    On one CPU thread (docs/training.md): the tokenizer in 42 min, 25.9 dB and 83 to 100 % of the
    codes in use from 2x2 on; the transformer in 39 min, 4.91 nats a code on the test images, where
    the codes' frequencies have 5.94.

    The tokenizer has 1.0 M weights and takes 1.3 GFLOP an image, forward and backward; the
    transformer, by ``--depth``: 5: 9.7 M and 5.1 GFLOP, 6: 16.5 M and 8.6, 7: 26.0 M and 13.6,
    8: 38.7 M and 20.2 (markov; block_causal takes 1 to 2 % more). Without Ray, from one file:
    ``python -m benchmarks.train_cifar10``.
    """
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


def _paper(train_images: int) -> Preset:
    """The paper's setting at 256 px, with VAR's tokenizer and VAR's d16.

    200 epochs in batches of 224 at lr 1e-4, clip 1.0, AdamW (0.9, 0.95) with weight decay 0.05
    (its beta2 of 0.05 and 6,000 codes are misprints); initial gates, warm-up and the fall of the
    rate as in VAR's command for d16. The paper takes VAR's tokenizer as published
    (``srdd convert``). One trained here sees 100,000 batches of 64, without the perceptual and
    the adversarial loss unless ``--lpips FILE --gan-weight 0.4`` are given; neither the paper nor
    VAR tells how theirs was trained.

    What takes how long was counted, not run: d16 has 309 M weights and takes 861 GFLOP an image
    (block_causal 896), forward and backward; the tokenizer 109 M and 1,826 GFLOP, which is 32
    hours at 100 TFLOP/s (TF32). Hours below are of one GPU at 300 TFLOP/s in bfloat16, 30 % of an
    H100's peak: an assumption.
    """
    patch_nums = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    epochs, batch_size = 200, 224
    return Preset(
        tokenizer=TokenizerConfig(resolution=256, patch_nums=patch_nums),
        tokenizer_loss=TokenizerLossConfig(),
        tokenizer_optim=OptimConfig(steps=100_000, batch_size=64, lr=1e-4, weight_decay=0.0),
        transformer=var_size(TransformerConfig(patch_nums=patch_nums), depth=16),
        transformer_loss=TransformerLossConfig(label_drop=0.1),
        transformer_optim=OptimConfig(
            steps=round(epochs * train_images / batch_size), batch_size=batch_size, lr=1e-4,
            lr_schedule="linear", warmup=0.02, warmup_start=0.005, hold=0.05, final_lr=0.1,
            weight_decay=0.05, clip=1.0, precision="bfloat16",
        ),
        init_gate=1e-3,
        classifier_optim=OptimConfig(steps=5000, lr=1e-3, weight_decay=0.01),
        checkpoint_every=1000,
    )  # fmt: skip


def mini_imagenet() -> Preset:
    """Mini-ImageNet: 100 classes, 50,000 images, 44,643 updates. See :func:`_paper`.

    ::

        srdd data prepare --recipe mini-imagenet --path DIR --out data/mini-imagenet
        srdd train transformer --preset mini-imagenet --data data/mini-imagenet \
                               --tokenizer runs/var-d16 --device cuda --out runs/mini-imagenet

    Not run: 8 hours by count, and no metrics are known.
    """
    return _paper(50_000)


def sun397() -> Preset:
    """SUN397's subset: 175 classes, 21,875 images, 19,531 updates. See :func:`_paper`.

    ::

        srdd data prepare --recipe sun397 --path SUN397 --out data/sun397
        srdd train transformer --preset sun397 --data data/sun397 \
                               --tokenizer runs/var-d16 --device cuda --out runs/sun397

    Not run: 3.5 hours by count, and no metrics are known.
    """
    return _paper(21_875)


def ffhq() -> Preset:
    """FFHQ without classes: 60,000 images, 53,571 updates. See :func:`_paper`.

    ::

        srdd data prepare --recipe ffhq --path images1024x1024 --out data/ffhq
        srdd train transformer --preset ffhq --data data/ffhq \
                               --tokenizer runs/var-d16 --device cuda --out runs/ffhq

    Not run: 9.6 hours by count, and no metrics are known.
    """
    return _paper(60_000)


def afhq() -> Preset:
    """AFHQ (version 1) without classes: 14,630 images, 13,062 updates. See :func:`_paper`.

    ::

        srdd data prepare --recipe afhq --path afhq --out data/afhq
        srdd train transformer --preset afhq --data data/afhq \
                               --tokenizer runs/var-d16 --device cuda --out runs/afhq

    Not run: 2.3 hours by count, and no metrics are known.
    """
    return _paper(14_630)


PRESETS = {
    "digits": digits,
    "cifar10": cifar10,
    "mini-imagenet": mini_imagenet,
    "sun397": sun397,
    "ffhq": ffhq,
    "afhq": afhq,
}


def get_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()

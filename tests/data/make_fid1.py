"""Write fid1.tar.xz: data, models, a sweep and a distillation, as they were made under ``fid@1``.

    python tests/data/make_fid1.py DIR

Only code whose evaluation protocol is ``fid@1`` makes them, such as commit 55e1f42. Weights are
rounded to bfloat16, and files that nothing reads when a directory is gone on with are left out,
so that the archive is small.
"""

import lzma
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from srdd.checkpoint import save_model
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.presets import digits
from srdd.var.config import SamplerConfig, TokenizerConfig, TransformerConfig
from srdd.var.init import init_weights
from srdd.var.pipeline import Pipeline, save_pipeline
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd_platform.data.shards import prepare
from srdd_platform.distill.run import Distillation, distill
from srdd_platform.evaluation.protocol import EvaluationConfig
from srdd_platform.sweep.definition import (
    Categorical,
    Float,
    Int,
    Sweep,
    epsilon,
    plain,
    product,
)
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.sweep.run import run_sweep
from srdd_platform.train.options import TransformerOptions

CLASSES, IMAGES = 3, 40  # of each class
LEFT_OUT = ("grids", "checkpoints", "tensorboard", "report", ".lock", "throughput.jsonl")


def images(folder: Path) -> None:
    """Digits 0 to 2 as a folder a class."""
    data = load_digits()
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for i, pixels in enumerate(data.images[data.target == label][:IMAGES]):
            grey = np.round(pixels * 255 / 16).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(folder / str(label) / f"{i}.png")


def rounded(module: torch.nn.Module) -> torch.nn.Module:
    """The module with weights that bfloat16 holds."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.bfloat16())
    return module.eval()


def models(root: Path) -> None:
    """A pipeline of random weights and a classifier."""
    torch.manual_seed(0)
    shared = {"patch_nums": (1, 2, 4), "vocab_size": 16, "z_channels": 4}
    tokenizer = Tokenizer(
        TokenizerConfig(resolution=8, ch=4, ch_mult=(1, 1), num_res_blocks=1, **shared)
    )
    model = ScaleTransformer(
        TransformerConfig(num_classes=CLASSES, depth=1, width=16, num_heads=2, **shared)
    )
    init_weights(model, gate=1.0, head=1.0)
    rounded(tokenizer)
    model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    names = tuple(map(str, range(CLASSES)))
    save_pipeline(Pipeline(tokenizer, rounded(model), SamplerConfig(), names), root / "model")
    classifier = Classifier(ClassifierConfig(num_classes=CLASSES, resolution=8, ch=4, features=8))
    state = rounded(classifier).state_dict()
    save_model(root / "classifier", "classifier", classifier.config, state)


def main() -> None:
    root = Path(sys.argv[1])
    images(root / "images")
    prepare(
        source="folder", path=root / "images", resolution=8, out=root / "data", val_fraction=0.5
    )
    models(root)
    args = SweepArgs(
        out=root / "sweep", model=root / "model", data=root / "data",
        weights=root / "classifier", trials=3, num=60,
    )  # fmt: skip
    sweep = Sweep(
        name="small",
        space={
            "cfg": Float(0.0, 3.0, step=0.25),
            "feedback": Categorical(("updated", "kept")),
            "refine_steps": Int(0, 2),
            "resample_threshold": Float(1e-3, 0.3, log=True),
        },
        first=product(cfg=[0.5], feedback=["updated"], refine_steps=[1], resample_threshold=[0.01]),
        references=[*plain(cfg=[0, 0.5, 1, 2]), *epsilon(1e-3, 1e-2, cfg=0.5)],
    )
    run_sweep(sweep, args)
    evaluation = EvaluationConfig(
        data=str(root / "data"), extractor="classifier", weights=str(root / "classifier"), num=60
    )
    job = Distillation(
        model=root / "model", data=evaluation.data, out=root / "distillation", stages=((1, 4),),
        steps=1, options=TransformerOptions(batch_size=30), evaluation=evaluation,
    )  # fmt: skip
    distill(job, digits(), None)
    archive = Path(__file__).with_name("fid1.tar.xz")
    with (
        lzma.open(archive, "wb", preset=9 | lzma.PRESET_EXTREME) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name in ("data", "model", "classifier", "sweep", "distillation"):
            tar.add(root / name, name, filter=kept)
    print(archive, archive.stat().st_size)


def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """What goes into the archive, without what differs from machine to machine."""
    if any(part in LEFT_OUT for part in Path(member.name).parts):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()

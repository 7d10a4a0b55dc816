"""What keeps a small tokenizer's codebook alive: each remedy alone, and all together.

    python -m benchmarks.codebook_remedies images.npz --steps 300 --out remedies.json

``images.npz`` holds uint8 ``images`` [n, 3, R, R]; the last tenth of them (or ``held_out``, an
array like it) is not trained on. Every arm begins with the same weights and sees the same
batches. Needs torch and srdd alone.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srdd.images import to_float, to_uint8
from srdd.metrics.quality import psnr, ssim
from srdd.rng import uniform
from srdd.train.config import OptimConfig, RestartVote, TokenizerLossConfig
from srdd.train.loop import fit
from srdd.train.task import Batch
from srdd.train.var.codebook import codebook_usage
from srdd.train.var.tokenizer_task import TokenizerTask
from srdd.var.config import TokenizerConfig
from srdd.var.tokenizer import Tokenizer

SEED_IMAGES = 256
_ORDER = 0x08DE8  # a stream of random numbers


@dataclass(frozen=True, slots=True)
class Arm:
    """A combination of remedies."""

    name: str
    seeded: bool = True  # the codebook begins with latents of the data
    restarts: RestartVote | None = None
    entropy: bool = False
    scale_drop: bool = False


ARMS = (
    Arm("none", seeded=False),
    Arm("seeded"),
    Arm("seeded, restarts by vectors", restarts="vector"),
    Arm("seeded, restarts by scales", restarts="scale"),
    Arm("seeded, entropy", entropy=True),
    Arm("seeded, scale drop", scale_drop=True),
    Arm("seeded, restarts by scales, scale drop", restarts="scale", scale_drop=True),
    Arm("all", restarts="scale", entropy=True, scale_drop=True),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What an arm reaches on the held-out images."""

    arm: str
    psnr: float
    ssim: float
    usage: dict[str, float]  # share of the codes that a scale uses at all
    perplexity: dict[str, float]
    seconds: float  # of training


def train(
    arm: Arm, model: TokenizerConfig, optim: OptimConfig, images: Tensor, args: argparse.Namespace
) -> Tokenizer:
    """Train one arm's tokenizer."""
    loss = TokenizerLossConfig(
        restart_every=args.restart_every if arm.restarts else 0,
        restart_vote=arm.restarts or "scale",
        entropy=args.entropy if arm.entropy else 0.0,
        scale_drop=args.scale_drop if arm.scale_drop else 0.0,
    )
    task = TokenizerTask(model, loss, optim)
    if arm.seeded:
        task.seed_codebook(images[:SEED_IMAGES])

    def batches(step: int) -> Iterator[Batch]:
        while True:
            place_b = torch.arange(optim.batch_size)
            index_b = (uniform(place_b, optim.seed, step, _ORDER) * len(images)).long()
            yield Batch(images[index_b], torch.zeros_like(index_b), index_b, optim.batch_size)
            step += 1

    fit(task, optim, batches)
    return task.tokenizer.eval()


def judge(arm: str, tokenizer: Tokenizer, images: Tensor, seconds: float) -> Row:
    """The held-out numbers: means over images, and the codes of all of them."""
    codes, quality = [], []
    for part in images.split(128):
        codes.append(tokenizer.encode(to_float(part)))
        seen = to_uint8(tokenizer.decode(codes[-1]).add(1).mul(0.5))
        quality.append(torch.stack((psnr(part, seen), ssim(part, seen))))
    db, similarity = torch.cat(quality, dim=1).mean(1).tolist()
    codes_nL, usage, perplexity = torch.cat(codes), {}, {}
    schedule = tokenizer.schedule
    for side, (begin, end) in zip(schedule.patch_nums, schedule.spans, strict=True):
        used = codes_nL[:, begin:end].flatten()
        counts_V = torch.bincount(used, minlength=tokenizer.config.vocab_size)
        usage[f"{side}x{side}"], perplexity[f"{side}x{side}"] = codebook_usage(counts_V)
    return Row(arm, db, similarity, usage, perplexity, seconds)


def table(rows: list[Row]) -> str:
    """The rows as a markdown table: usage in percent / perplexity for each scale."""
    scales = list(rows[0].usage)
    heads = ["remedies", "PSNR dB", "SSIM", *(f"{scale} use / ppl" for scale in scales), "s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for row in rows:
        cells = [row.arm, f"{row.psnr:.2f}", f"{row.ssim:.3f}"]
        cells += [f"{100 * row.usage[s]:.0f} % / {row.perplexity[s]:.0f}" for s in scales]
        lines.append("| " + " | ".join([*cells, f"{row.seconds:.0f}"]) + " |")
    return "\n".join(lines)


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Images to train on, and those held out."""
    with np.load(path) as arrays:
        images = torch.from_numpy(arrays["images"])
        if "held_out" in arrays:
            return images, torch.from_numpy(arrays["held_out"])
    cut = len(images) - len(images) // 10
    return images[:cut], images[cut:]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--vocab-size", type=int, default=256)
    parser.add_argument("--channels", type=int, default=16, help="of the latent")
    parser.add_argument("--ch", type=int, default=8, help="width of the first level")
    parser.add_argument("--ch-mult", type=int, nargs="+", default=[1, 2, 2, 2])
    parser.add_argument("--patch-nums", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--restart-every", type=int, default=25)
    parser.add_argument("--entropy", type=float, default=0.01)
    parser.add_argument("--scale-drop", type=float, default=0.2)
    parser.add_argument("--arms", nargs="+", default=[arm.name for arm in ARMS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON with settings and rows")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Row]:
    """Train every arm and print the table."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    images, held_out = load(args.images)
    model = TokenizerConfig(
        resolution=images.shape[-1], patch_nums=tuple(args.patch_nums), num_res_blocks=1,
        vocab_size=args.vocab_size, z_channels=args.channels, ch=args.ch,
        ch_mult=tuple(args.ch_mult),
    )  # fmt: skip
    optim = OptimConfig(
        steps=args.steps, batch_size=args.batch_size, lr=args.lr, weight_decay=0.0, seed=args.seed
    )
    rows = []
    for arm in ARMS:
        if arm.name not in args.arms:
            continue
        began = time.perf_counter()
        tokenizer = train(arm, model, optim, images, args)
        rows.append(judge(arm.name, tokenizer, held_out, time.perf_counter() - began))
        print(f"{arm.name}: {rows[-1].psnr:.2f} dB, {rows[-1].seconds:.0f} s", flush=True)
    print("\n" + table(rows))
    if args.out:
        settings: dict[str, Any] = {k: v for k, v in vars(args).items() if k != "out"}
        settings |= {"images": len(images), "held_out": len(held_out)}
        found = {"settings": settings, "rows": [asdict(row) for row in rows]}
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()

"""Signal-to-noise ratio after each scale, and what re-encoding does to codes (docs/theory.md).

    python benchmarks/snr.py TOKENIZER IMAGES [--n 1000] [--prune 1,2,4,8]

TOKENIZER is a tokenizer's model directory, or a run directory that holds one in ``model/``. IMAGES
is an .npz or .safetensors file with a uint8 array ``images`` [n, 3, R, R], R the tokenizer's
resolution. Prints a table, and the same numbers as one line of JSON.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from srdd.errors import UserError
from srdd.images import to_float
from srdd.var.likelihood import changed_codes, kept_maps, pruned_quantizer
from srdd.var.pipeline import load_tokenizer
from srdd.var.snr import snr_per_scale
from srdd.var.tokenizer import Tokenizer

BATCH = 100


@dataclass(frozen=True)
class Row:
    """One scale: means and standard errors in dB, shares of codes that differ."""

    scale: int  # its side
    latent_db: tuple[float, float]  # mean over images, standard error
    pixel_db: tuple[float, float]
    psnr_db: tuple[float, float]
    falls: float  # share of images whose latent SNR is lower than one scale before
    pruned: float | None  # codes of this scale that differ under the pruned schedule
    half: float  # ... when the image is first halved in resolution and enlarged again
    latent_again: float  # codes of scales up to this one that differ when f_hat_n is encoded
    image_again: float  # ... when the image decoded from f_hat_n is encoded


def load_images(path: Path, side: int, n: int) -> Tensor:
    """The first ``n`` images: float [n, 3, R, R] in [-1, 1].

    Raises:
        UserError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a .npz or .safetensors file of images")
    try:
        if path.suffix == ".npz":
            images = torch.from_numpy(np.load(path)["images"])
        else:
            images = load_file(path)["images"]
    except KeyError:
        raise UserError(f"{path} has no array 'images'") from None
    except Exception:  # numpy and safetensors raise many kinds
        raise UserError(f"{path} is damaged, or not a .npz or .safetensors file") from None
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (3, side, side):
        raise UserError(
            f"{path} must hold uint8 [n, 3, {side}, {side}], "
            f"got {images.dtype} {list(images.shape)}"
        )
    if n < 1 or not len(images):
        raise UserError(f"there is nothing to measure: n = {n}, {path} holds {len(images)} images")
    return to_float(images[:n])


def sides(text: str) -> tuple[int, ...]:
    """Parse "1,2,4"."""
    return tuple(int(side) for side in text.split(",") if side)


def in_batches(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply to ``BATCH`` images at a time."""
    return torch.cat([function(batch) for batch in images.split(BATCH)])


def mean_and_error(values_B: Tensor) -> tuple[float, float]:
    spread = float(values_B.std()) if len(values_B) > 1 else math.nan
    return float(values_B.mean()), spread / math.sqrt(len(values_B))


@torch.no_grad()
def measure(tokenizer: Tokenizer, images: Tensor, prune: tuple[int, ...]) -> list[Row]:
    """All rows of the table."""
    schedule, quantizer = tokenizer.schedule, tokenizer.quantizer

    def three(batch: Tensor) -> Tensor:
        snr = snr_per_scale(tokenizer, batch)
        return torch.stack((snr.latent_db_BS, snr.pixel_db_BS, snr.psnr_db_BS), dim=2)

    def halved(batch: Tensor) -> Tensor:
        small = F.interpolate(batch, scale_factor=0.5, mode="area")
        return tokenizer.encode(F.interpolate(small, size=batch.shape[2:], mode="bicubic"))

    db_BS3 = in_batches(three, images)
    f = in_batches(tokenizer.latent, images)
    codes_BL = quantizer.encode(f)
    half = changed_codes(schedule, codes_BL, schedule, in_batches(halved, images))
    pruned: dict[int, float] = {}
    if prune:
        other = pruned_quantizer(quantizer, prune)
        pruned = changed_codes(schedule, codes_BL, other.schedule, other.encode(f))
    maps = kept_maps(quantizer, codes_BL)[1:]
    rows = []
    for s, (side, (_, end)) in enumerate(zip(schedule.patch_nums, schedule.spans, strict=True)):
        latent_again = quantizer.encode(maps[s])[:, :end]
        image_again = in_batches(lambda m: tokenizer.encode(tokenizer.decode_latent(m)), maps[s])
        lower = db_BS3[:, s, 0] < db_BS3[:, s - 1, 0] if s else torch.zeros(1)
        rows.append(
            Row(
                scale=side,
                latent_db=mean_and_error(db_BS3[:, s, 0]),
                pixel_db=mean_and_error(db_BS3[:, s, 1]),
                psnr_db=mean_and_error(db_BS3[:, s, 2]),
                falls=float(lower.double().mean()),
                pruned=pruned.get(side),
                half=half[side],
                latent_again=float((latent_again != codes_BL[:, :end]).double().mean()),
                image_again=float((image_again[:, :end] != codes_BL[:, :end]).double().mean()),
            )
        )
    return rows


def table(rows: list[Row], prune: tuple[int, ...]) -> str:
    """The rows in Markdown."""
    pruned = f"pruned to {', '.join(map(str, prune))}" if prune else "pruned"
    names = ["scale", "latent SNR, dB", "pixel SNR, dB", "PSNR, dB", "SNR falls", pruned]
    names += ["half resolution", "f_hat_n encoded", "its image encoded"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [f"{row.scale}x{row.scale}"]
        cells += [f"{m:.2f} ± {e:.2f}" for m, e in (row.latent_db, row.pixel_db, row.psnr_db)]
        cells += [f"{100 * row.falls:.1f} %"]
        shares = (row.pruned, row.half, row.latent_again, row.image_again)
        cells += ["" if share is None else f"{100 * share:.0f} %" for share in shares]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--n", type=int, default=1000, help="images used, the first ones")
    parser.add_argument(
        "--prune", type=sides, default=(), help="scales to encode with instead: 1,2,4,8"
    )
    args = parser.parse_args()
    try:
        inner = args.tokenizer / "model"
        tokenizer = load_tokenizer(inner if inner.is_dir() else args.tokenizer)
        images = load_images(args.images, tokenizer.config.resolution, args.n)
        rows = measure(tokenizer, images, args.prune)
    except UserError as error:
        sys.exit(str(error))
    print(f"{len(images)} images\n\n{table(rows, args.prune)}\n")
    numbers = {"n": len(images), "prune": args.prune, "rows": [asdict(row) for row in rows]}
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()

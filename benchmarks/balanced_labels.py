"""What fixed numbers of each class do to the estimators of a sweep (docs/evaluation.md).

    python -m benchmarks.balanced_labels RUNS [--only halves]

RUNS is what `make sweep` leaves in runs/digits: ``data``, ``classifier`` and ``markov``. Prints:

halves  KID between halves of the real images, of each class and at random: its mean should be 0.
sets    Estimators over sets of images with equally many of each class, and with classes at random:
        their mean and spread, and the jackknife's error of FID.
trials  Hypervolume and lowest FID of some settings, which are measured anew from several seeds.
"""

import argparse
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.tables import table
from srdd.images import to_uint8
from srdd.load import load_var
from srdd.var.config import SamplerConfig
from srdd_platform.data.dataset import load_arrays
from srdd_platform.evaluation.extractors import Extractor, Features, load_extractor
from srdd_platform.evaluation.generate import sample_batches
from srdd_platform.evaluation.kid import class_bias
from srdd_platform.evaluation.metrics import Reference, jackknife_error, measure, raw_kid
from srdd_platform.report.hypervolume import hypervolume
from srdd_platform.sweep.run import HYPERVOLUME_COST, HYPERVOLUME_FID

BATCH = 250
COLUMNS = ("fid", "inception_score", "kid_raw", "kid", "precision", "recall", "accuracy")
SETTINGS = tuple(
    SamplerConfig(cfg=cfg, refine_steps=steps, resample_threshold=threshold)
    for steps, threshold in ((0, 0.0), (1, 0.01), (2, 0.1))
    for cfg in (0.0, 0.5, 1.0, 2.0)
)  # the first is plain SDD without guidance
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Images of one setting, as many of each class as of any other."""

    features: Features
    labels: Tensor
    gflops: float  # an image


def draw(model: Path, config: SamplerConfig, n: int, seed: int, extractor: Extractor) -> Drawn:
    """Draw n images."""
    batches = list(sample_batches(load_var(model), config, n, seed, BATCH))
    found = extractor(torch.cat([to_uint8(result.images) for _, result in batches]))
    gflops = torch.cat([result.gflops for _, result in batches])
    return Drawn(found, torch.cat([labels for labels, _ in batches]), float(gflops.mean()))


def chosen(features: Features, rows: Tensor) -> Features:
    """Some of the images."""
    return Features(features.features_nD[rows], features.logits_nK[rows])


def mean_and_spread(values: Iterable[float]) -> list[str]:
    """A mean with its standard error, and the standard deviation."""
    found = list(values)
    spread = statistics.stdev(found)
    return [f"{statistics.fmean(found):.5f} ± {spread / len(found) ** 0.5:.5f}", f"{spread:.5f}"]


def estimators(pool: Drawn, reference: Reference, n: int) -> str:
    """Estimators over sets of n images with equally many of each class, and at random."""
    generator = torch.Generator().manual_seed(0)
    orders = {
        "fixed": torch.arange(len(pool.labels)),  # classes come in turns
        "random": torch.randperm(len(pool.labels), generator=generator),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in orders}
    for name, order in orders.items():
        for rows in order.split(n):
            fake = chosen(pool.features, rows)
            values = measure(fake, reference, pool.labels[rows], accuracy=True)
            blocks = reference.left_out(fake.features_nD, None)
            found[name].append({**values, "any": jackknife_error(blocks)})
    lines = [
        [column, *(c for rows in found.values() for c in mean_and_spread(r[column] for r in rows))]
        for column in COLUMNS
    ]
    for title, column in (("blocks of all classes", "fid_se"), ("blocks at random", "any")):
        errors = [statistics.fmean(row[column] for row in rows) for rows in found.values()]
        lines.append([f"jackknife's error of FID, {title}", f"{errors[0]:.5f}", "",
                      f"{errors[1]:.5f}", ""])  # fmt: skip
    head = [f"{len(found['fixed'])} sets of n = {n}", "fixed classes", "std", "random", "std"]
    return table(head, lines)


def kid_of_halves(features_nD: Tensor, labels_n: Tensor, splits: int) -> str:
    """KID between halves of the real images: of each class, and at random."""
    generator = torch.Generator().manual_seed(0)
    lines = []
    for name in ("halves of each class", "halves at random"):
        raws, corrected = [], []
        for _ in range(splits):
            order = torch.randperm(len(labels_n), generator=generator)
            if name == "halves of each class":
                order = order[labels_n[order].argsort(stable=True)]
                order = torch.cat([part[torch.randperm(len(part), generator=generator)]
                                   for part in (order[::2], order[1::2])])  # fmt: skip
            parts = order.split((len(order) + 1) // 2)
            raws.append(raw_kid(features_nD[parts[0]], features_nD[parts[1]]))
            biases = [class_bias(features_nD[part], labels_n[part]) or 0.0 for part in parts]
            corrected.append(raws[-1] - sum(biases))
        lines.append([name, *mean_and_spread(raws), *mean_and_spread(corrected)])
    return table([f"{splits} splits", "KID raw", "std", "KID", "std"], lines)


def trials(model: Path, extractor: Extractor, reference: Reference, n: int, seeds: int) -> str:
    """How the hypervolume and the lowest FID of some settings vary from seed to seed."""
    fids, blocks, costs = [], [], []  # [seeds, settings], [seeds, settings, blocks], [settings]
    for seed in range(seeds):
        drawn = [draw(model, config, n, seed, extractor) for config in SETTINGS]
        fids.append([reference.frechet(one.features.features_nD) for one in drawn])
        blocks.append([reference.left_out(one.features.features_nD, one.labels) for one in drawn])
        costs = [one.gflops for one in drawn]
    fid, left_out = np.array(fids), np.array(blocks)
    errors = np.array([[jackknife_error(trial) for trial in seed] for seed in left_out])
    point = (HYPERVOLUME_COST * costs[0], HYPERVOLUME_FID * float(fid[:, 0].mean()))

    def volume(values: Array) -> float:
        return hypervolume(zip(costs, map(float, values), strict=True), point)

    volumes = [volume(one) for one in fid]
    together = [jackknife_error(np.array([volume(f) for f in seed.T])) for seed in left_out]
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(500, len(SETTINGS))) * errors.mean(0)
    alone = [volume(fid.mean(0) + one) for one in noise]
    pairs = np.corrcoef(fid, rowvar=False)[np.triu_indices(len(SETTINGS), 1)]
    others = [np.delete(fid[:, b], seed).mean() for seed, b in enumerate(fid.argmin(1))]
    lines = [
        ["a setting's FID: std over seeds", f"{fid.std(0, ddof=1).mean():.4f}"],
        ["... jackknife's error", f"{errors.mean():.4f}"],
        ["correlation of two settings' FIDs over seeds", f"{np.mean(pairs):.2f}"],
        ["hypervolume of one seed: mean", f"{np.mean(volumes):.4f}"],
        ["... std over seeds", f"{np.std(volumes, ddof=1):.4f}"],
        ["... jackknife, blocks of all settings left out together", f"{np.mean(together):.4f}"],
        ["... std if the FIDs' errors were independent", f"{np.std(alone):.4f}"],
        ["... mean if the FIDs' errors were independent", f"{np.mean(alone):.4f}"],
        ["hypervolume of the mean FIDs", f"{volume(fid.mean(0)):.4f}"],
        ["lowest FID of one seed: mean", f"{fid.min(1).mean():.4f}"],
        ["... the same setting's FID with the other seeds", f"{np.mean(others):.4f}"],
    ]
    return table([f"{len(SETTINGS)} settings, {seeds} seeds, n = {n}", "value"], lines)


PARTS = ("halves", "sets", "trials")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("runs", type=Path)
    options.add_argument("--only", choices=PARTS, help="one part alone")
    options.add_argument("--splits", type=int, default=20, help="of the real images")
    options.add_argument("--sets", type=int, default=20)
    options.add_argument("--n", type=int, default=500, help="images of a set")
    options.add_argument("--seeds", type=int, default=6, help="of each setting's images")
    options.add_argument("--trial-n", type=int, default=250, help="images of a setting and seed")
    args = options.parse_args()
    torch.set_num_threads(1)
    parts = PARTS if args.only is None else (args.only,)
    extractor = load_extractor("classifier", args.runs / "classifier")
    images, labels = load_arrays(args.runs / "data", "train")
    real = extractor(images)
    reference, model = Reference(real, labels), args.runs / "markov" / "model"
    if "halves" in parts:
        held_out, more = load_arrays(args.runs / "data", "val")
        every = torch.cat([real.features_nD, extractor(held_out).features_nD])
        print(kid_of_halves(every, torch.cat([labels, more]), args.splits), "\n", flush=True)
    if "sets" in parts:
        pool = draw(model, SETTINGS[0], args.n * args.sets, 0, extractor)
        print(estimators(pool, reference, args.n), "\n", flush=True)
    if "trials" in parts:
        print(trials(model, extractor, reference, args.trial_n, args.seeds), "\n")


if __name__ == "__main__":
    main()

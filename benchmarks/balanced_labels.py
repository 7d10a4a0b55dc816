"""What fixed numbers of each class do to the estimators of a sweep (docs/evaluation.md).

    python benchmarks/balanced_labels.py SWEEP CLASSIFIER [--n 1000] [--sets 20]

SWEEP is a finished sweep's directory, CLASSIFIER its classifier's run. Prints three tables:

1. Sets of n images of the plain sampler, drawn with equally many images of each class and with
   classes at random: mean and spread of each estimator over the sets, and the jackknife's error.
2. Splits of the real images in halves, of each class and at random: KID's mean, which should be 0.
3. The hypervolume and the best trial, with all trials' FIDs measured anew from several seeds.
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.tables import table
from srdd.config import SamplerConfig
from srdd.pipeline import load_pipeline
from srdd_platform.best import row_config
from srdd_platform.data import load_arrays
from srdd_platform.drawn import draw_batches
from srdd_platform.fidelity import Extractor, Features, load_extractor
from srdd_platform.files import read_json
from srdd_platform.images import to_uint8
from srdd_platform.kid import class_bias
from srdd_platform.metrics import Reference, jackknife_error, measure, raw_kid
from srdd_platform.report.info import hypervolume
from srdd_platform.runs import model_dir
from srdd_platform.search import trial_rows

BATCH = 250
COLUMNS = ("fid", "inception_score", "kid_raw", "kid", "precision", "recall", "accuracy")
Array = npt.NDArray[np.float64]


def draw(
    directory: Path, config: SamplerConfig, n: int, seed: int, extractor: Extractor
) -> tuple[Features, Tensor]:
    """Features and labels of n images, as many of each class as of any other."""
    parts = [
        (extractor(to_uint8(result.images)), labels)
        for labels, result in draw_batches(load_pipeline(directory), config, n, seed, BATCH)
    ]
    features = torch.cat([part.features_nD for part, _ in parts])
    logits = torch.cat([part.logits_nK for part, _ in parts])
    return Features(features, logits), torch.cat([labels for _, labels in parts])


def chosen(features: Features, rows: Tensor) -> Features:
    """Some of the images."""
    return Features(features.features_nD[rows], features.logits_nK[rows])


def mean_and_spread(values: Iterable[float]) -> list[str]:
    """A mean with its standard error, and the standard deviation."""
    found = list(values)
    spread = statistics.stdev(found)
    return [f"{statistics.fmean(found):.5f} ± {spread / len(found) ** 0.5:.5f}", f"{spread:.5f}"]


def estimators(pool: Features, labels: Tensor, reference: Reference, n: int) -> str:
    """Estimators over sets of n images with equally many of each class, and at random."""
    generator = torch.Generator().manual_seed(0)
    orders = {
        "fixed": torch.arange(len(labels)),  # classes come in turns
        "random": torch.randperm(len(labels), generator=generator),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in orders}
    for name, order in orders.items():
        for rows in order.split(n):
            fake = chosen(pool, rows)
            values = measure(fake, reference, labels[rows], accuracy=True)
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


def trials(
    sweep: Path, model: Path, extractor: Extractor, reference: Reference, n: int, seeds: int
) -> str:
    """How the hypervolume and the best trial vary from seed to seed."""
    rows = [row for row in trial_rows(sweep) if row["status"] == "ok"]
    costs = [row["gflops_per_image"] for row in rows]
    noted = read_json(sweep / "config.json")["hypervolume_reference"]
    point = (noted["gflops_per_image"], noted["fid"])

    def volume(fids: Sequence[float] | Array) -> float:
        return hypervolume(zip(costs, map(float, fids), strict=True), point)

    fids, blocks = [], []  # [seeds, trials], [seeds, trials, blocks]
    for seed in range(1, seeds + 1):
        sets = [draw(model, row_config(row), n, seed, extractor) for row in rows]
        fids.append([reference.frechet(fake.features_nD) for fake, _ in sets])
        blocks.append([reference.left_out(fake.features_nD, labels) for fake, labels in sets])
    fid, left_out = np.array(fids), np.array(blocks)
    errors = np.array([[jackknife_error(trial) for trial in seed] for seed in left_out])
    rng = np.random.default_rng(0)
    alone = [volume(fid.mean(0) + rng.normal(size=len(rows)) * errors.mean(0)) for _ in range(500)]
    volumes = [volume(one) for one in fid]
    together = [jackknife_error(np.array([volume(f) for f in seed.T])) for seed in left_out]
    best = fid.argmin(1)
    others = [np.delete(fid[:, b], s).mean() for s, b in enumerate(best)]
    pairs = np.corrcoef(fid, rowvar=False)[np.triu_indices(len(rows), 1)]
    lines = [
        ["hypervolume of one seed: mean", f"{np.mean(volumes):.4f}"],
        ["hypervolume of one seed: std over seeds", f"{np.std(volumes, ddof=1):.4f}"],
        ["jackknife with the trials' blocks left out together", f"{np.mean(together):.4f}"],
        ["std if the trials' FIDs had independent errors", f"{np.std(alone):.4f}"],
        ["hypervolume of the mean FIDs", f"{volume(fid.mean(0)):.4f}"],
        ["mean hypervolume if errors were independent", f"{np.mean(alone):.4f}"],
        ["correlation of two trials' FIDs over seeds", f"{np.mean(pairs):.2f}"],
        ["std of a trial's FID over seeds", f"{fid.std(0, ddof=1).mean():.4f}"],
        ["jackknife's error of a trial's FID", f"{errors.mean():.4f}"],
        ["the best trial's FID: of the seed that chose it", f"{fid.min(1).mean():.4f}"],
        ["... of the other seeds", f"{np.mean(others):.4f}"],
    ]  # fmt: skip
    return table([f"{len(rows)} trials, {seeds} seeds, n = {n}", "value"], lines, text=(0,))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("sweep", type=Path)
    options.add_argument("classifier", type=Path)
    options.add_argument("--n", type=int, default=1000, help="images of a set")
    options.add_argument("--sets", type=int, default=20, help="sets, and splits of the real images")
    options.add_argument("--seeds", type=int, default=6, help="seeds of the trials")
    options.add_argument("--trial-n", type=int, default=250, help="images of a trial and seed")
    args = options.parse_args()
    torch.set_num_threads(1)
    runtime = read_json(args.sweep / "config.json")["runtime"]
    model = model_dir(Path(runtime["model"]))
    extractor = load_extractor("classifier", args.classifier)
    images, labels = load_arrays(Path(runtime["data"]), "train")
    real = extractor(images)
    reference = Reference(real, labels)
    held_out, held_out_labels = load_arrays(Path(runtime["data"]), "val")
    every = torch.cat([real.features_nD, extractor(held_out).features_nD])
    print(kid_of_halves(every, torch.cat([labels, held_out_labels]), args.sets), flush=True)
    pool, asked = draw(model, SamplerConfig(), args.n * args.sets, 0, extractor)
    print("", estimators(pool, asked, reference, args.n), sep="\n", flush=True)
    if args.seeds > 1:
        found = trials(args.sweep, model, extractor, reference, args.trial_n, args.seeds)
        print("", found, sep="\n")


if __name__ == "__main__":
    main()

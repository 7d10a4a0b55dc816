r"""Speed and memory of sampling: VAR's loop against ours, all arms interleaved in one run.

    python -m benchmarks.sampling --var-repo DIR --size small --out small.json
    python -m benchmarks.sampling --var-repo DIR --size d16 --decode yes --repeats 3 --out d16.json
    python -m benchmarks.sampling --var-repo DIR --size d16 --device cuda --batch 1 8 64 \
        --arms official official:fp32 causal markov markov:fp16 markov:fp32 markov+graph \
        markov+compile pruned-6 pruned-5 srdd-1 srdd-5 epsilon --out d16_gpu.json
    python -m benchmarks.sampling --markdown small.json

An arm is ``base[+accelerator][:dtype]``. Bases: ``official`` (needs ``--var-repo``; below fp32
under autocast, as its demo runs it), ``plain`` (the same loop written on our weights), ``causal``,
``markov``, ``pruned-N`` (N scales), ``srdd-T`` (T refinement passes), ``epsilon``. Accelerators:
``int8``, ``compile``, ``graph``. Ratios are to the first arm, pair by pair. All draw with cfg 1.5,
the size's top-k and top-p 0.96. Exits 1 where a float32 arm's greedy codes are not the official
loop's. The weights are random, so ``srdd-T`` redraws other codes than a trained model's would: the
evaluations it ran (NFE) stand beside its time.
"""

import argparse
import contextlib
import sys
import time
from typing import Any

import torch

from benchmarks import ceilings, command, measure, memory, roofline
from benchmarks.arms import ArmName, Facts, Lab, SkipArmError
from benchmarks.command import DTYPES
from benchmarks.measure import Call
from benchmarks.sizes import SIZES
from srdd.errors import UserError
from srdd.var.masks import Mask

CFG = 1.5
Row = dict[str, Any]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Time every arm at every batch, with and without the decoder."""
    device = command.device_of(options)
    size = SIZES[options.size]
    names = arm_names(options, device)
    lab = Lab(size, device, options.var_repo, CFG, options.seed)
    for name in names:
        lab.config(name)  # wrong arms stop the run before its first minute
    report: dict[str, Any] = {
        "benchmark": "sampling",
        "size": size.name,
        "reference": str(names[0]),
        "repeats": options.repeats,
        "environment": command.environment(device),
        "memory_method": memory.METHOD[device.type],
        "skipped": [],
    }
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # its demo's
    dtypes = sorted({"fp32", *(name.dtype for name in names)})
    report["ceilings"] = {
        "matmul_flops": {dt: ceilings.matmul_flops(device, DTYPES[dt]) for dt in dtypes},
        "conv_flops": {dt: ceilings.conv_flops(device, DTYPES[dt]) for dt in dtypes},
        "copy_bytes": ceilings.copy_bytes(device),
    }
    report["rows"], report["roofline"] = [], []
    for batch in options.batch or [size.batch]:
        for decode in {"yes": [True], "no": [False], "both": [False, True]}[options.decode]:
            rows, skipped = timed_rows(lab, names, batch, decode, options)
            report["rows"] += rows
            report["skipped"] += [one for one in skipped if one not in report["skipped"]]
            report["roofline"] += floor_rows(lab, report["ceilings"], batch, decode, rows)
    add_utilisation(report)
    command.say("greedy codes")  # last: these calls would warm up what is timed
    report["greedy"] = greedy_rows(lab, names, min(options.batch or [size.batch]))
    report["ok"] = all(row["ok"] for row in report["greedy"])
    return report


def arm_names(options: argparse.Namespace, device: torch.device) -> list[ArmName]:
    """The arms asked for; by default those that are exact, and what the paper adds."""
    gpu = device.type == "cuda"
    ours, theirs = ("bf16", "fp16") if gpu else ("fp32", "fp32")
    arms = options.arms
    if arms is None:
        pruned = [f"pruned-{len(sides)}" for sides in SIZES[options.size].pruned]
        first = "official" if options.var_repo is not None else "plain"
        arms = [first, "causal", "markov", *pruned, "srdd-1", "srdd-5", "epsilon"]
    names = [ArmName.parse(arm, ours, theirs) for arm in arms]
    if not gpu and any(name.dtype == "fp16" for name in names):
        raise UserError("fp16 arms need a GPU: a CPU computes them in software")
    if len(set(names)) != len(names):
        raise UserError("an arm is named twice")
    return names


def greedy_rows(lab: Lab, names: list[ArmName], batch: int) -> list[Row]:
    """Whether the likeliest codes of our full-length arms are the official loop's."""
    rows: list[Row] = []
    for name in names:
        if name.base in ("causal", "markov"):
            with contextlib.suppress(SkipArmError):  # its reason is given where it is timed
                rows.append(greedy_row(lab, name, batch))
    return rows


def greedy_row(lab: Lab, name: ArmName, batch: int) -> Row:
    """How many of an arm's likeliest codes are the official loop's, or the plain one's.

    Raises:
        SkipArmError: the arm cannot run here.
    """
    with command.float32_exact():
        codes_BL = lab.greedy(name, batch)
        share = (codes_BL == lab.reference_codes(name.mask, batch)).double().mean().item()
    by = "official" if lab.official is not None else "plain"
    exact = name.dtype == "fp32" and name.accelerator != "int8"
    row = {"arm": str(name), "against": by, "mask": name.mask, "share": share}
    return {**row, "must_be_equal": exact, "ok": share == 1.0 or not exact}


def timed_rows(
    lab: Lab, names: list[ArmName], batch: int, decode: bool, options: argparse.Namespace
) -> tuple[list[Row], list[Row]]:
    """Time one batch size; rows, and the arms that were left out."""
    calls: dict[ArmName, Call] = {}
    prepared: dict[ArmName, float] = {}
    skipped: list[Row] = []
    for name in names:
        started = time.perf_counter()
        try:
            calls[name] = lab.prepare(name, batch, decode)
        except SkipArmError as reason:
            skipped.append({"arm": str(name), "decode": decode, "reason": str(reason)})
        prepared[name] = time.perf_counter() - started
    if not calls:
        return [], skipped
    command.say(f"batch {batch}, {'with' if decode else 'without'} decoder: {len(calls)} arms")
    by_text = {str(name): call for name, call in calls.items()}
    timings = measure.interleave(by_text, lab.device, options.repeats)
    reference = timings.get(str(names[0]))
    rows: list[Row] = []
    for name, call in calls.items():
        timing = timings[str(name)]
        facts = lab.facts(name, batch)
        peak = None if options.no_memory else peak_row(lab, name, facts, call, decode)
        rows.append(
            {
                "arm": str(name),
                "batch": batch,
                "decode": decode,
                **measure.timing_row(timing, reference),
                "warm_up_s": prepared[name] + timing.warm_up_s,
                "images_per_s": batch / measure.Spread.of(timing.wall).median,
                "nfe": facts.nfe,
                **operations(lab, name, facts, batch, decode),
                "memory": peak,
            }
        )
    return rows, skipped


def peak_row(lab: Lab, name: ArmName, facts: Facts, call: Call, decode: bool) -> Row | None:
    """Peak memory in bytes.

    ``cache`` is what the loop holds at its last scale. Without the decoder the rest of ``live`` is
    activations; with it the peak may lie where the cache is gone already, so it is not split.
    """
    unseen = name.accelerator == "graph" or (
        name.accelerator == "compile" and lab.device.type == "cpu"
    )
    if unseen:
        return None  # a graph has its memory beforehand, compiled code no operators to follow
    live = memory.peak_bytes(call, lab.device)
    weights = lab.weights(name)
    return {
        "peak": weights + live,
        "weights": weights,
        "live": live,
        "cache": facts.cache_bytes,
        "activations": None if decode else max(0, live - facts.cache_bytes),
    }


def operations(lab: Lab, name: ArmName, facts: Facts, batch: int, decode: bool) -> Row:
    """GFLOPs an image: what our loop counted; for VAR's, what its model needs, waste left out."""
    decoder = 0.0
    if decode:
        work = roofline.decoder_work(lab.size.tokenizer(), 1, 4)
        decoder = sum(one.flops for one in work) / 1e9
    loop = facts.gflops
    if loop is None:
        needed = roofline.sampling_work(lab.size.transformer(name.mask), batch, 4, lab.cfg)
        loop = sum(one.flops for one in needed) / batch / 1e9
    return {
        "gflops_per_image": loop + decoder,
        "decoder_gflops": decoder,
        "decoder_dtype": lab.decoder_dtype(name),
    }


def add_utilisation(report: dict[str, Any]) -> None:
    """Model FLOPs utilisation: the time of the operations at the measured ceilings, over the time.

    The decoder's stand against the rate of convolutions, all others against that of products.
    """
    limits = report["ceilings"]
    for row in report["rows"]:
        dtype = row["arm"].partition(":")[2]
        loop = (row["gflops_per_image"] - row["decoder_gflops"]) / limits["matmul_flops"][dtype]
        decoder = row["decoder_gflops"] / limits["conv_flops"][row["decoder_dtype"]]
        least = (loop + decoder) * 1e9 * row["batch"]
        row["utilisation"] = None if "+int8" in row["arm"] else least / row["seconds"][0]


def floor_rows(
    lab: Lab, limits: dict[str, Any], batch: int, decode: bool, rows: list[Row]
) -> list[Row]:
    """The physical floor of both masks at each dtype of ours, and the best arm against it."""
    floors: list[Row] = []
    bases: tuple[tuple[str, Mask], ...] = (("causal", "block_causal"), ("markov", "markov"))
    for base, mask in bases:
        for dtype in limits["matmul_flops"]:
            same = [r for r in rows if _is(r["arm"], base, dtype)]
            if not same:
                continue
            item = DTYPES[dtype].itemsize
            rates: roofline.Rates = {}
            for conv, kind in ((False, "matmul_flops"), (True, "conv_flops")):
                rates[conv, 4], rates[conv, item] = limits[kind]["fp32"], limits[kind][dtype]
            config = lab.size.transformer(mask)
            work = list(roofline.sampling_work(config, batch, item, lab.cfg))
            if decode:
                own_dtype = lab.decoder_dtype(ArmName(base, "", dtype))
                own_item = DTYPES[own_dtype].itemsize
                work += roofline.decoder_work(lab.size.tokenizer(), batch, own_item)
            parts = {}
            for part in sorted({one.part for one in work}):
                own = [one for one in work if one.part == part]
                parts[part] = roofline.floor(own, rates, limits["copy_bytes"]).seconds
            floor = roofline.floor(work, rates, limits["copy_bytes"])
            best = min(same, key=lambda r: float(r["seconds"][0]))
            floors.append(
                {
                    "mask": mask,
                    "dtype": dtype,
                    "batch": batch,
                    "decode": decode,
                    "gflops": floor.flops / 1e9,
                    "gbytes": floor.bytes / 1e9,
                    "compute_s": floor.compute_s,
                    "traffic_s": floor.traffic_s,
                    "floor_s": floor.seconds,
                    "floor_parts_s": parts,
                    "best_arm": best["arm"],
                    "best_s": best["seconds"][0],
                }
            )
    return floors


def _is(arm: str, base: str, dtype: str) -> bool:
    name, _, own = arm.partition(":")
    exact, _, accelerator = name.partition("+")
    return exact == base and own == dtype and accelerator != "int8"


def main(argv: list[str] | None = None) -> int:
    options = command.parser(__doc__)
    options.add_argument("--arms", nargs="+", metavar="ARM", help="the first is the reference")
    options.add_argument("--batch", type=command.positive, nargs="+", help="one or more sizes")
    options.add_argument("--decode", choices=("yes", "no", "both"), default="both")
    options.add_argument("--repeats", type=command.positive, default=7)
    options.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    return command.main(options, run, argv)


if __name__ == "__main__":
    sys.exit(main())

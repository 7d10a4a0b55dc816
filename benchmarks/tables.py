"""Reports as markdown tables."""

from collections.abc import Callable, Sequence
from typing import Any

Report = dict[str, Any]


def markdown(report: Report) -> str:
    """The tables of a report, with a line that says where it was read."""
    where = report["environment"]
    if where["device"] == "cpu":
        where_text = f"CPU ({where['name']}), {where['threads']} threads"
    else:
        where_text = str(where["name"])
    head = f"{report['benchmark']}, size {report['size']}, {where_text}, torch {where['torch']}"
    return "\n\n".join([head, *KINDS[report["benchmark"]](report)])


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """Aligned columns: those of ``text`` to the left, the others to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        sides = [
            c.ljust(w) if i in text else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(sides) + " |"

    rule = ["-" * w if i in text else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])])


def spread(values: Sequence[float] | None, scale: float = 1.0, unit: str = "") -> str:
    """A median with its quartiles."""
    if values is None:
        return "-"
    median, low, high = (number(value * scale) for value in values)
    return f"{median}{unit} ({low} to {high})"


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value is None:
        return "-"
    if value == 0:
        return f"0{unit}"
    if abs(value) >= 1000:
        return f"{value:,.0f}{unit}"
    return (f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}") + unit


def parity_tables(report: Report) -> list[str]:
    """One row a comparison."""
    rows = [
        (c["what"], c["mask"], number(c["value"]), number(c["bound"]), "yes" if c["ok"] else "NO",
         c["note"])
        for c in report["checks"]
    ]  # fmt: skip
    head = ("largest difference", "mask", "value", "bound", "holds", "note")
    return [table(head, rows, text=(0, 1, 5))]


def train_tables(report: Report) -> list[str]:
    """Time of a step, then parity of loss and gradients."""
    rows = [
        (r["arm"], spread(r["seconds"]), spread(r["speedup"], unit="x"), number(r["warm_up_s"]))
        for r in report["rows"]
    ]
    head = ("step", "s", f"against {report['reference']}", "first call s")
    checks = [
        (c["mask"], c["against"], number(c["loss"]), number(c["loss_difference"]),
         number(c["gradient_difference"]), number(c["gradient_relative"]),
         "yes" if c["ok"] else "NO")
        for c in report["parity"]
    ]  # fmt: skip
    columns = ("parity", "against", "loss", "loss differs", "gradients differ", "relative", "holds")
    setting = f"batch {report['batch']}, {report['dtype']}, {report['repeats']} rounds"
    return [setting, table(head, rows), table(columns, checks)]


def sampling_tables(report: Report) -> list[str]:
    """Times, memory, floors and checks."""
    time_head = ("arm", "batch", "decoded", "s a batch", f"against {report['reference']}",
                 "images/s", "NFE", "GFLOPs/image", "of ceiling", "warm-up s")  # fmt: skip
    times = [
        (r["arm"], str(r["batch"]), "yes" if r["decode"] else "no", spread(r["seconds"]),
         spread(r["speedup"], unit="x"), number(r["images_per_s"]), number(r["nfe"]),
         number(r["gflops_per_image"]), percent(r["utilisation"]), number(r["warm_up_s"]))
        for r in report["rows"]
    ]  # fmt: skip
    parts = ("peak", "weights", "live", "cache", "activations")
    memory_rows = [
        (r["arm"], str(r["batch"]), "yes" if r["decode"] else "no",
         *(megabytes(r["memory"][part]) for part in parts))
        for r in report["rows"]
        if r["memory"]
    ]  # fmt: skip
    floor_head = ("mask", "dtype", "batch", "decoded", "GFLOPs", "GB", "compute s", "traffic s",
                  "floor s", "best arm", "best s", "best/floor")  # fmt: skip
    floors = [
        (f["mask"], f["dtype"], str(f["batch"]), "yes" if f["decode"] else "no",
         number(f["gflops"]), number(f["gbytes"]), number(f["compute_s"]), number(f["traffic_s"]),
         number(f["floor_s"]), f["best_arm"], number(f["best_s"]),
         number(f["best_s"] / f["floor_s"]))
        for f in report["roofline"]
    ]  # fmt: skip
    greedy = [(g["arm"], g["against"], percent(g["share"]), _verdict(g)) for g in report["greedy"]]
    ceilings = ", ".join(
        f"{dtype} {what} {number(rate / 1e12)} TFLOP/s"
        for what, kind in (("products", "matmul_flops"), ("convolutions", "conv_flops"))
        for dtype, rate in report["ceilings"][kind].items()
    )
    copies = f"copies {number(report['ceilings']['copy_bytes'] / 1e9)} GB/s"
    sections = [
        f"Medians and quartiles of {report['repeats']} interleaved rounds.",
        table(time_head, times),
    ]
    if memory_rows:
        sections.append(
            f"Peak memory in MB ({report['memory_method']}). Live: beside the weights; cache: keys "
            "and values at the last scale; activations: the rest of live, where nothing is decoded."
        )
        sections.append(table(("arm", "batch", "decoded", *parts), memory_rows))
    sections.append(f"Measured ceilings: {ceilings}, {copies}.")
    if floors:
        sections.append(table(floor_head, floors))
    if greedy:
        sections.append(table(("greedy codes", "against", "equal", "must be"), greedy))
    skipped = [
        f"Left out: {s['arm']} {'with' if s['decode'] else 'without'} decoder: {s['reason']}."
        for s in report["skipped"]
    ]
    return [*sections, *(["\n".join(skipped)] if skipped else [])]


def data_plane_tables(report: Report) -> list[str]:
    """What reading costs, what codes save, and the parts of the tokenizer's step."""
    rates = [
        (r["kind"], str(r["batch"]), spread(r["step_s"]), shares(r["share"]),
         *(shares(r["share_wall"][arm]) for arm in ("shards", "shards, read ahead")))
        for r in report["rates"]
    ]  # fmt: skip
    head = ("training", "batch", "step s", "delivered, CPU time", "delivered, wall",
            "read ahead, wall")  # fmt: skip
    codes = [
        (r["model"], str(r["batch"]), r["precision"], "yes" if r["update"] else "no",
         *(spread(r[f"{arm}_s"]) for arm in ("pixels", "codes", "encoder")),
         spread(r["speedup"], unit="x"), shares(r["encoder_share"]), percent(r["saved"]))
        for r in report["codes"]
    ]  # fmt: skip
    codes_head = ("transformer", "batch", "products", "update", "from pixels s", "from codes s",
                  "encoder s", "codes are faster", "encoder's share", "saved")  # fmt: skip
    found = [
        f"Medians and quartiles of {report['repeats']} interleaved rounds of {report['steps']} "
        "updates."
    ]
    if rates:
        found.append(table(head, rates))
    if codes:
        found.append(table(codes_head, codes, text=(0, 2)))
    if parts := report["parts"]:
        step = f"{number(parts['step_s'])} s, batch {parts['batch']}"
        found.append(f"The tokenizer's step ({step}), over {parts['steps']} updates:")
        split = [(part, percent(share)) for part, share in parts["shares"].items()]
        found.append(table(("part", "share"), split))
    return found


def shares(values: Sequence[float]) -> str:
    """A share with its quartiles."""
    median, low, high = (100 * value for value in values)
    return f"{median:.1f} % ({low:.1f} to {high:.1f})"


def percent(value: float | None) -> str:
    """A share."""
    return "-" if value is None else f"{100 * value:.1f} %"


def megabytes(value: int | None) -> str:
    """Bytes as MB."""
    return "-" if value is None else number(value / 1e6)


def _verdict(check: dict[str, Any]) -> str:
    if not check["must_be_equal"]:
        return "reported only"
    return "equal: yes" if check["ok"] else "equal: NO"


KINDS: dict[str, Callable[[Report], list[str]]] = {
    "parity": parity_tables,
    "train_step": train_tables,
    "sampling": sampling_tables,
    "data_plane": data_plane_tables,
}

"""The timed parts of a GPU check: sampling and the training step, arms in interleaved rounds."""

import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks import measure, memory, sampling, train_step
from benchmarks.arms import ArmName, Facts, Lab, SkipArmError
from benchmarks.gpu_job import Job, Send, attempt, free
from benchmarks.gpu_results import Row
from benchmarks.measure import Call, Timing

CHECKED = 2  # images whose gradients are compared
_READY = 0.7  # of the time, at most, to make arms ready and read their memory
_SEND_S = 2.0  # between two states of a round's rows, which are written to disk
_MB = 1e6


def sampling_arms(arms: Sequence[str], job: Job, send: Send) -> None:
    """Time and memory of arms, images decoded, batch by batch; the first is the plain loop."""
    lab = Lab(job.size, job.device(tf32=True), None, sampling.CFG, job.seed)
    names = arm_names(arms, job)
    for at, batch in enumerate(job.batches):
        later = len(job.batches) - at - 1
        _sampling_at(lab, names, batch, job, send, spare_s=job.left_s * later / (later + 1))
        free(job)


def _sampling_at(
    lab: Lab, names: list[ArmName], batch: int, job: Job, send: Send, spare_s: float
) -> None:
    calls: dict[str, Call] = {}
    ready: dict[str, Row] = {}
    least_s = spare_s + (1 - _READY) * (job.left_s - spare_s)
    for name in names:
        with attempt(job, send, label(name), name.dtype, batch):
            job.require(least_s)
            began = time.perf_counter()
            call, peak_mb, facts = _prepared(lab, name, batch)
            ready_s = time.perf_counter() - began
            gflops = sampling.operations(lab, name, facts, batch, True)["gflops_per_image"]
            note = f"{facts.nfe:.3g} evaluations and {gflops:.4g} GFLOPs an image; "
            note += f"ready after {ready_s:.3g} s"
            row = Row(what=label(name), dtype=name.dtype, batch=batch, peak_mb=peak_mb, note=note)
            calls[str(name)], ready[str(name)] = call, row
            send(row)
    _time(job, send, calls, ready, str(names[0]), spare_s)


def arm_names(arms: Sequence[str], job: Job) -> list[ArmName]:
    """Arms by name: ours in bf16 and the plain loop under fp16 autocast on a GPU, else fp32."""
    ours, plain = ("bf16", "fp16") if job.gpu else ("fp32", "fp32")
    return list(dict.fromkeys(ArmName.parse(arm, ours, plain) for arm in arms))


def label(name: ArmName) -> str:
    """An arm without its dtype."""
    return str(name).partition(":")[0]


def _prepared(lab: Lab, name: ArmName, batch: int) -> tuple[Call, float | None, Facts]:
    """An arm's call, warmed up; its peak memory in MB and what it says of itself."""
    if name.dtype == "fp16" and lab.device.type == "cpu":
        raise SkipArmError("a CPU computes fp16 in software")
    weights = lab.weights(name)
    if name.accelerator == "graph":  # its memory is taken when it is captured
        made: list[Call] = []
        live = memory.peak_bytes(lambda: made.append(lab.prepare(name, batch, True)), lab.device)
        made[0]()
        return made[0], (weights + live) / _MB, lab.facts(name, batch)
    call = lab.prepare(name, batch, True)
    call()
    facts = lab.facts(name, batch)
    peak = sampling.peak_row(lab, name, facts, call, True)
    return call, None if peak is None else peak["peak"] / _MB, facts


def training_steps(job: Job, send: Send) -> None:
    """Gradients beside the plain step's in float32, then the time of a step with its update."""
    device = job.device()
    with attempt(job, send, "gradients", "fp32", CHECKED):
        job.require()
        for check in train_step.Bench.make(job.size, device, CHECKED, job.seed, None).checks():
            send(
                Row(
                    what=f"gradients {check['mask']}",
                    dtype="fp32",
                    batch=CHECKED,
                    value=max(check["gradient_difference"], check["loss_difference"]),
                    bound=check["bound"],
                    note=f"loss {check['loss']:.4g}; relative {check['gradient_relative']:.2g}",
                )
            )
    batch = job.batches[0]
    while not _steps_fit(job, send, batch) and batch > 1:
        batch = max(1, batch // 2)


def _steps_fit(job: Job, send: Send, batch: int) -> bool:
    """Time the training arms at a batch; False where one of them did not fit the memory."""
    free(job)
    device, dtype = job.device(tf32=True), "bf16" if job.gpu else "fp32"
    calls: dict[str, Call] = {}
    ready: dict[str, Row] = {}
    bench: train_step.Bench | None = None
    with attempt(job, send, "step", dtype, batch) as tried:
        job.require()
        bench = train_step.Bench.make(job.size, device, batch, job.seed, None)
    short = tried.out_of_memory
    for arm, make in bench.steps().items() if bench else ():
        what = f"step {arm}"
        with attempt(job, send, what, dtype, batch) as tried:
            job.require()
            step = make()
            call = train_step.timed(step, device, dtype, update=True)
            call()
            for weight in step.weights.values():
                weight.grad = None
            peak_mb = memory.peak_bytes(call, device) / _MB
            note = "with AdamW's update; the peak is beside weights and optimizer"
            row = Row(what=what, dtype=dtype, batch=batch, peak_mb=peak_mb, note=note)
            calls[arm], ready[arm] = call, row
            send(row)
        short = short or tried.out_of_memory
    _time(job, send, calls, ready, bench.reference if bench else "")
    return not short


def _time(
    job: Job,
    send: Send,
    calls: dict[str, Call],
    ready: dict[str, Row],
    first: str,
    spare_s: float = 0.0,
) -> None:
    """Rounds over all arms, each sent as it stands, until no more than ``spare_s`` is left."""
    if not calls:
        return

    def send_all(timings: dict[str, Timing]) -> None:
        for arm, timing in timings.items():
            send(_timed(ready[arm], timing, timings.get(first)))

    last_sent = float("-inf")
    read: dict[str, Timing] = {}
    for read in measure.rounds(calls, job.device(tf32=True), job.repeats):
        if job.left_s < spare_s:
            break
        if time.monotonic() - last_sent > _SEND_S:
            last_sent = time.monotonic()
            send_all(read)
    send_all(read)


def _timed(row: Row, timing: Timing, reference: Timing | None) -> Row:
    """A row with the times of its arm."""
    found = measure.timing_row(timing, reference)
    assert row.batch is not None
    return replace(
        row,
        ms=[1e3 * seconds for seconds in found["seconds"]],
        wall_ms=[1e3 * seconds for seconds in found["wall_seconds"]],
        images_per_s=row.batch / found["wall_seconds"][0],
        against_plain=found["speedup"],
        rounds=len(timing.seconds),
    )

"""A sweep from nothing to a report: data, models, reference rows, search, best sampler, report.

Every stage looks at what is on disk first, so the same command goes on where it stopped; when
all is done, it only reads.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

from srdd.load import load_pipeline
from srdd_platform.core.cluster import Cluster, lazy_cluster
from srdd_platform.core.ray_session import Session
from srdd_platform.core.runs import check_place, model_dir, note, open_run
from srdd_platform.data.manifest import Manifest
from srdd_platform.evaluation.generate import Load
from srdd_platform.evaluation.rows import read_rows
from srdd_platform.evaluation.table import compile_table
from srdd_platform.report.columns import COSTS, better_sign
from srdd_platform.report.inputs import report_is_current
from srdd_platform.report.page import build_report
from srdd_platform.sweep import finished, references
from srdd_platform.sweep.axes import check_axes
from srdd_platform.sweep.begun import as_begun
from srdd_platform.sweep.best import best_row, best_rule, row_config, save_best, trial_rows
from srdd_platform.sweep.definition import Sweep
from srdd_platform.sweep.models import given_inputs, plain_settings, preset_inputs
from srdd_platform.sweep.options import Request, SweepArgs
from srdd_platform.sweep.plan import Plan, check_sweep, make_plan
from srdd_platform.sweep.references import ReferenceSpec
from srdd_platform.sweep.search import OnRow, Search, run_search
from srdd_platform.sweep.trainer import Trainer
from srdd_platform.train.progress import Display, no_display

HYPERVOLUME_COST, HYPERVOLUME_FID = 8.0, 2.0  # times plain sampling at the first trials' settings
Show = Callable[[int, Sequence[Mapping[str, Any]]], AbstractContextManager[OnRow]]

logger = logging.getLogger(__name__)


@contextmanager
def show_nothing(total: int, done: Sequence[Mapping[str, Any]]) -> Iterator[OnRow]:
    """A display of trials that shows nothing."""
    yield lambda row: None


def run_sweep(
    sweep: Sweep,
    args: SweepArgs,
    *,
    show: Show = show_nothing,
    display: Display = no_display,
    load: Load = load_pipeline,
) -> finished.Outcome:
    """Run a sweep from whatever is there to its report.

    Args:
        sweep: what is searched.
        args: its options.
        show: called with the number of trials in all and the rows of those that are done; gives
            what shows the others as they finish.
        display: shows how far the trainings are.
        load: loads a pipeline directory, here and in the trials' processes.

    Raises:
        UserError: an input is wrong; the message says what to do.
    """
    request = Request(sweep, args)
    out = request.directory
    check_axes(sweep.models)
    check_place(out)
    with lazy_cluster(args.address, args.device) as cluster:
        plan = _plan(request, Trainer.of(request, cluster, display), load)
        sources = finished.stamp_sources(plan.inputs.files)
        settings = as_begun(out, plan.settings)
        with open_run(out, f"sweep {sweep.name}", settings, plan.runtime):
            _measure(plan, plan.references, cluster, load)
            _fix_hypervolume(plan)
            _search(plan, cluster, show, load)
            keep_best(plan, cluster, load)
            compile_table(out, type(plan.space.base))
            if not report_is_current(out):
                build_report(out)
            return finished.note_finished(request, sources)


def _plan(request: Request, trainer: Trainer, load: Load) -> Plan:
    """Everything that a sweep does, on models that are there; each is loaded once."""
    loaded = cache(load)
    check_sweep(request.sweep, plain_settings(request, loaded))
    ready = preset_inputs if request.args.model is None else given_inputs
    return make_plan(request, ready(request, trainer, loaded), loaded)


def _measure(plan: Plan, specs: Sequence[ReferenceSpec], cluster: Cluster, load: Load) -> None:
    """Make the reference rows that are missing."""
    shared = (plan.out, plan.pipeline, plan.evaluation)
    missing = references.missing_references(*shared, specs, plan.extractor)
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        logger.info("Evaluating reference rows: %s%s", missing[0][0].name, others)
        slots, threads = _slots(plan.request.args, cluster.connect())
        references.run_references(*shared, missing, slots=slots, threads=threads, load=load)


def _fix_hypervolume(plan: Plan) -> None:
    """Fix the hypervolume's reference point before the search: multiples of a reference row."""
    rows = {row["name"]: row for row in read_rows(plan.out) if row["kind"] == "reference"}
    row = rows.get(plan.bound, {"status": "absent"})
    if row["status"] == "ok" and all(better_sign(name) > 0 for name in plan.objectives):
        factors = {n: HYPERVOLUME_COST if n in COSTS else HYPERVOLUME_FID for n in plan.objectives}
        point = {name: factor * row[name] for name, factor in factors.items()}
        note(plan.out, "hypervolume_reference", point)


def _search(plan: Plan, cluster: Cluster, show: Show, load: Load) -> None:
    """Make the trials that are missing."""
    done = trial_rows(plan.out)
    if len(done) >= plan.request.trials:
        return
    logger.info(
        "Searching: %s distinct settings, %s images each, %s done",
        plan.request.trials, plan.evaluation.num, len(done),
    )  # fmt: skip
    slots, threads = _slots(plan.request.args, cluster.connect())
    models = {key: str(path.resolve()) for key, path in plan.inputs.models.items()}
    search = Search(
        directory=str(plan.out.resolve()), models=models, load=load, space=plan.space,
        objectives=plan.objectives, first=plan.first, trials=plan.request.trials,
        evaluation=plan.evaluation, slots=slots, threads=threads,
    )  # fmt: skip
    with show(plan.request.trials, done) as on_row:
        complete = run_search(search, on_row)
    if not complete:
        logger.info("The space has no further distinct setting.")


def keep_best(plan: Plan, cluster: Cluster, load: Load) -> None:
    """Write ``best/``, and measure its settings on as many images as are held out."""
    best = best_row(plan.out, plan.objectives)
    if best is None:
        logger.warning("No trial has a value of each objective (%s): there is no best one",
                       ", ".join(plan.objectives))  # fmt: skip
        return
    config = row_config(best, type(plan.space.base))
    pipeline = plan.inputs.models[plan.space.model(best)]
    save_best(plan.out, pipeline, best, config, best_rule(plan.objectives))
    num = Manifest.load(plan.inputs.data).splits["val"].num
    other = "" if pipeline == plan.pipeline else str(model_dir(pipeline).resolve())
    specs = references.after_search(plan.references, config, best["key"], num, other)
    _measure(plan, specs, cluster, load)


def _slots(args: SweepArgs, cluster: Session) -> tuple[int, int]:
    """Trials at once and CPU threads of each."""
    total = cluster.total
    if args.device.startswith("cuda"):
        cluster.require(gpus=1)
        return args.slots or max(1, int(total.get("GPU", 1))), 1
    cpus = max(1, int(total.get("CPU", 1)))
    slots = args.slots or cpus
    cluster.require(cpus=slots)
    return slots, max(1, cpus // slots)

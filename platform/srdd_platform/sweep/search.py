"""Searching sampler settings with Ray Tune and Optuna, a row each.

The rows on disk are the truth: a search that goes on tells Optuna what they hold, asks for what
is missing and nothing else. Neither Optuna's study nor Tune's own snapshot outlives the process.
"""

import logging
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
)
from optuna.trial import TrialState, create_trial
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from srdd.errors import UserError
from srdd.var.config import SamplerConfig
from srdd_platform.core.runs import model_dir
from srdd_platform.core.watching import Watcher
from srdd_platform.evaluation.evaluator import load_evaluator
from srdd_platform.evaluation.generate import load_generator
from srdd_platform.evaluation.protocol import EvaluationConfig, weights_digest
from srdd_platform.evaluation.rows import read_rows, settings_of, to_json, write_row
from srdd_platform.sweep.space import Space, active_key, check_space, contains, setting, suggest

OBJECTIVES = ("fid", "gflops_per_image")  # both minimised
PATIENCE = 20  # repeats before settings are drawn evenly
MAX_REDRAWS = 2000  # suggestions in a row that repeat a setting before the space counts as empty

logger = logging.getLogger(__name__)


class RowSearch(OptunaSearch):  # type: ignore[misc]
    """Optuna's multi-objective search over rows: distinct settings, truthful states.

    A suggestion that repeats a setting (or differs in an inactive one only) is told FAIL, which
    the sampler leaves out of its model, and drawn again.
    """

    def __init__(self, space: Space, base: SamplerConfig, sampler: Any) -> None:
        super().__init__(
            partial(suggest, space=space), metric=list(OBJECTIVES), mode=["min", "min"],
            sampler=sampler,
        )  # fmt: skip
        self._distributions = dict(space)
        self._base = base
        self._even = optuna.samplers.RandomSampler(seed=0)
        self._taken: set[str] = set()  # settings that have a row, or whose row is being made
        self.next_order = 0

    def tell_row(self, row: Mapping[str, Any]) -> None:
        """Tell Optuna a finished row; one that lies outside the space only counts as taken."""
        found = settings_of(row, type(self._base))
        config = setting(self._base, found)
        params = {name: value for name, value in found.items() if name in self._distributions}
        values = [row[name] for name in OBJECTIVES]
        good = row["status"] == "ok" and all(value is not None for value in values)
        self._taken.add(active_key(config))
        self.next_order = max(self.next_order, row["order"] + 1)
        used = {name: self._distributions[name] for name in params}
        if good and all(contains(used[name], params[name]) for name in used):
            self._ot_study.add_trial(create_trial(params=params, distributions=used, values=values))

    def ask_first(self, params: Mapping[str, Any]) -> None:
        """Try a setting before the sampler's own, unless its row is there."""
        if active_key(setting(self._base, params)) not in self._taken:
            self._ot_study.enqueue_trial(dict(params))

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next distinct setting, with its place in the table."""
        for draws in range(MAX_REDRAWS):
            if draws == PATIENCE:  # the sampler keeps to what it knows: draw evenly instead
                self._ot_study.sampler = self._even
            trial = self._ot_study.ask()
            self._space(trial)
            key = active_key(setting(self._base, trial.params))
            if key not in self._taken:
                break
            self._ot_study.tell(trial, state=TrialState.FAIL)
        else:
            return str(Searcher.FINISHED)
        self._ot_study.sampler = self._sampler
        self._taken.add(key)
        self._ot_trials[trial_id] = trial
        self.next_order += 1
        return {"params": dict(trial.params), "order": self.next_order - 1}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna COMPLETE with finite values, else FAIL: a NaN is no result."""
        trial = self._ot_trials.get(trial_id)
        if trial is None or trial_id in self._completed_trials:
            return
        values = [result.get(name) for name in OBJECTIVES] if result and not error else []
        good = bool(values) and all(value is not None and value == value for value in values)
        state = TrialState.COMPLETE if good else TrialState.FAIL
        self._ot_study.tell(trial, values if good else None, state=state)
        self._completed_trials.add(trial_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """One search over one model."""

    directory: str  # sweep directory
    pipeline: str  # pipeline directory
    space: dict[str, BaseDistribution]
    base: SamplerConfig  # what the space leaves alone
    first: list[dict[str, Any]]  # settings tried first
    trials: int  # rows in all
    evaluation: EvaluationConfig
    slots: int  # trials at once
    threads: int = 1  # of a trial on a CPU


class SamplerTrial(tune.Trainable):  # type: ignore[misc]
    """A trial; its actor keeps the model for the trials after it."""

    def setup(self, config: dict[str, Any]) -> None:
        """Load model, real images and extractor, once."""
        search: Search = config["search"]
        if search.evaluation.device == "cpu":
            torch.set_num_threads(search.threads)
        self.search = search
        self.evaluator = load_evaluator(search.evaluation)
        self.generator = load_generator(search.pipeline, search.evaluation)
        self.model = weights_digest(model_dir(Path(search.pipeline)))

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What a trial holds; the driver writes it into every trial's configuration."""
        return tune.PlacementGroupFactory([{"CPU": config["cpus"], "GPU": config["gpus"]}])

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing to keep: the row is on disk."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial's settings."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate one setting into its row."""
        directory = Path(self.search.directory)
        config = setting(self.search.base, self.config["params"])
        key = self.evaluator.key(self.model, config)
        grid = directory / "grids" / f"{key}.png"
        row = self.evaluator.row(
            self.generator, config, key=key, order=self.config["order"], grid=grid
        )
        write_row(directory, row)
        values = to_json(row)
        objectives = {name: values[name] for name in OBJECTIVES}
        finite = {n: float("nan") if v is None else v for n, v in objectives.items()}
        return {**values, **finite, "done": True}


class _Rows(tune.Callback):  # type: ignore[misc]
    """Hands each finished row to the driver."""

    def __init__(self, on_row: Callable[[dict[str, Any]], None]) -> None:
        self._on_row = on_row

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Show the row of a finished trial."""
        if trial.last_result and "key" in trial.last_result:
            self._on_row(trial.last_result)

    def __getstate__(self) -> dict[str, Any]:
        return {"_on_row": _ignore}  # Tune pickles callbacks into its snapshot


def _ignore(row: dict[str, Any]) -> None:
    pass


def trial_rows(directory: Path) -> list[dict[str, Any]]:
    """The finished trials of a sweep directory."""
    return [row for row in read_rows(directory) if row["kind"] == "trial"]


def run_search(search: Search, on_row: Callable[[dict[str, Any]], None]) -> bool:
    """Search until ``search.trials`` distinct rows exist. Ray must be connected.

    Returns:
        False where the space has no further distinct setting.

    Raises:
        KeyboardInterrupt: as pressed; finished rows are on disk.
        UserError: the space names an unknown setting, or all trials died.
    """
    check_space(search.space, search.base)
    directory = Path(search.directory)
    before = trial_rows(directory)
    missing = search.trials - len(before)
    if missing <= 0:
        return True
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    sampler = optuna.samplers.TPESampler(
        seed=search.evaluation.seed + len(before), multivariate=True, group=True,
        constant_liar=True, n_startup_trials=max(10, len(search.first)),
    )  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    algorithm = RowSearch(search.space, search.base, sampler)
    for row in before:
        algorithm.tell_row(row)
    for params in search.first:
        algorithm.ask_first(params)
    scratch = directory / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)
    gpus = 1.0 if search.evaluation.device.startswith("cuda") else 0.0
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # or Ctrl-C looks like a finished search
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # our table instead of a box for every trial
    table = Watcher("the table of trials", logger.warning)
    tuner = tune.Tuner(
        SamplerTrial,
        param_space={"search": search, "cpus": search.threads, "gpus": gpus},
        tune_config=tune.TuneConfig(
            search_alg=algorithm,
            num_samples=missing,
            max_concurrent_trials=search.slots + 2,  # or reused actors run one after the other
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(scratch.resolve()),
            callbacks=[_Rows(lambda row: table(on_row, row))],
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        results = tuner.fit()
    finally:
        signal.signal(signal.SIGINT, handler)
        shutil.rmtree(scratch, ignore_errors=True)
    if results.num_errors:
        raise UserError(
            f"{results.num_errors} trials died: {results.errors[0]}; give the command again to "
            "go on from the finished rows"
        )
    return len(trial_rows(directory)) >= search.trials

"""The trials of a sweep: Ray Tune runs them, Optuna chooses them, each is a row.

The rows on disk are the truth: a search that goes on tells Optuna what they hold, asks for what
is missing and nothing else. Neither Optuna's study nor Tune's own snapshot outlives the process.
"""

import logging
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from ray import tune

from srdd.errors import UserError
from srdd.generator import Generator
from srdd_platform.core.files import digest
from srdd_platform.core.runs import model_dir
from srdd_platform.core.watching import Watcher
from srdd_platform.evaluation.evaluator import load_evaluator
from srdd_platform.evaluation.generate import Load, load_generator
from srdd_platform.evaluation.protocol import EvaluationConfig, weights_digest
from srdd_platform.evaluation.rows import to_json, write_row
from srdd_platform.sweep.best import trial_rows
from srdd_platform.sweep.definition import Settings
from srdd_platform.sweep.searcher import StudySearcher
from srdd_platform.sweep.space import SearchSpace

OnRow = Callable[[Mapping[str, Any]], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """One search, as its trials' actors take it."""

    directory: str  # of the sweep
    models: Mapping[tuple[str, ...], str]  # pipeline directories by a value of each axis
    load: Load  # of a pipeline directory
    space: SearchSpace
    objectives: tuple[str, ...]
    first: Sequence[Settings]  # params tried first
    trials: int  # rows in all
    evaluation: EvaluationConfig
    slots: int  # trials at once
    threads: int = 1  # of a trial on a CPU


class SamplerTrial(tune.Trainable):  # type: ignore[misc]
    """A trial. Its actor keeps the evaluator and the models it has used for the trials after it."""

    def setup(self, config: dict[str, Any]) -> None:
        """Load real images and extractor, once."""
        self.search: Search = config["search"]
        if self.search.evaluation.device == "cpu":
            torch.set_num_threads(self.search.threads)
        self.evaluator = load_evaluator(self.search.evaluation)
        self.models: dict[tuple[str, ...], tuple[Generator[Any], str]] = {}

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
        """Take the next trial's params."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate a model and its settings into their row."""
        search, params = self.search, self.config["params"]
        named = dict(zip(search.space.models, search.space.model(params), strict=True))
        generator, model = self._model(tuple(named.values()))
        config = search.space.config(params)
        key = self.evaluator.key(model, config)
        directory = Path(search.directory)
        row = self.evaluator.row(
            generator, config, key=key, order=self.config["order"],
            grid=directory / "grids" / f"{key}.png",
        )  # fmt: skip
        row = replace(row, tags={**row.tags, **named})
        write_row(directory, row)
        values = to_json(row)
        objectives = {name: values[name] for name in search.objectives}
        finite = {n: float("nan") if v is None else v for n, v in objectives.items()}
        return {**values, **finite, "done": True}

    def _model(self, key: tuple[str, ...]) -> tuple[Generator[Any], str]:
        """A model on its device, and what names it in keys of rows.

        That is its weights' digest, with the values of the axes of models, if there are any: two
        models may have equal weights under different configurations.
        """
        if key not in self.models:
            directory = model_dir(Path(self.search.models[key]))
            generator = load_generator(directory, self.search.evaluation, self.search.load)
            weights = weights_digest(directory)
            self.models[key] = generator, digest([weights, *key]) if key else weights
        return self.models[key]


class _Rows(tune.Callback):  # type: ignore[misc]
    """Hands each finished row to the driver."""

    def __init__(self, on_row: OnRow) -> None:
        self._on_row = on_row

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Show the row of a finished trial."""
        if trial.last_result and "key" in trial.last_result:
            self._on_row(trial.last_result)

    def __getstate__(self) -> dict[str, Any]:
        return {"_on_row": _ignore}  # Tune pickles callbacks into its snapshot


def _ignore(row: Mapping[str, Any]) -> None:
    pass


def make_searcher(search: Search, before: Sequence[Mapping[str, Any]]) -> StudySearcher:
    """The searcher of a search that has some rows already."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=search.evaluation.seed + len(before), multivariate=True, group=True,
        constant_liar=True, n_startup_trials=max(10, len(search.first)),
    )  # fmt: skip
    searcher = StudySearcher(search.space, search.objectives, sampler)
    for row in before:
        searcher.tell_row(row)
    for params in search.first:
        searcher.ask_first(params)
    return searcher


def run_search(search: Search, on_row: OnRow) -> bool:
    """Search until ``search.trials`` distinct rows exist. Ray must be connected.

    Returns:
        False where the space has no further distinct setting.

    Raises:
        KeyboardInterrupt: as pressed; finished rows are on disk.
        UserError: trials died.
    """
    directory = Path(search.directory)
    before = trial_rows(directory)
    missing = search.trials - len(before)
    if missing <= 0:
        return True
    with _scratch(directory) as scratch:
        results = _tuner(search, make_searcher(search, before), missing, scratch, on_row).fit()
    if results.num_errors:
        raise UserError(
            f"{results.num_errors} trials died: {results.errors[0]}; give the command again to "
            "go on from the finished rows"
        )
    return len(trial_rows(directory)) >= search.trials


def _tuner(
    search: Search, searcher: StudySearcher, missing: int, scratch: Path, on_row: OnRow
) -> tune.Tuner:
    """Ray Tune over the rows that are missing."""
    gpus = 1.0 if search.evaluation.device.startswith("cuda") else 0.0
    table = Watcher("the table of trials", logger.warning)
    return tune.Tuner(
        SamplerTrial,
        param_space={"search": search, "cpus": search.threads, "gpus": gpus},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
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


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A folder for Tune's own files, which nothing reads, and Tune's settings as we need them."""
    scratch = directory / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # or Ctrl-C looks like a finished search
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # our table instead of a box for every trial
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield scratch
    finally:
        signal.signal(signal.SIGINT, handler)
        shutil.rmtree(scratch, ignore_errors=True)

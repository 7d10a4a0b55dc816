"""The search of a sweep, as Ray Tune asks for it: an Optuna study, asked and told."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from srdd_platform.report.columns import COSTS, METRICS
from srdd_platform.sweep.definition import Settings
from srdd_platform.sweep.space import SearchSpace

PATIENCE = 20  # repeats before settings are drawn evenly
MAX_REDRAWS = 2000  # suggestions in a row that repeat a setting before the space counts as empty


class StudySearcher(Searcher):  # type: ignore[misc]
    """Suggests params that no row has, and tells Optuna what became of them.

    A suggestion that repeats a row (or differs from it in inactive settings alone) is told FAIL,
    which Optuna's samplers leave out of their model, and drawn again.
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[str], sampler: BaseSampler) -> None:
        """Begin a study.

        Args:
            space: what is drawn.
            objectives: columns of a row.
            sampler: Optuna's.
        """
        super().__init__()
        columns = {**METRICS, **COSTS}
        self.study = optuna.create_study(
            directions=[
                "maximize" if columns[o].higher_is_better else "minimize" for o in objectives
            ],
            sampler=sampler,
        )
        self.next_order = 0  # of the next row in the table
        self._space = space
        self._objectives = tuple(objectives)
        self._sampler = sampler
        self._even = RandomSampler(seed=0)
        self._taken: set[str] = set()  # params that have a row, or whose row is being made
        self._told: list[dict[str, Any]] = []  # the params of rows
        self._running: dict[str, optuna.Trial] = {}  # by Tune's name of the trial

    def tell_row(self, row: Mapping[str, Any]) -> None:
        """Tell Optuna a finished row; one that is outside the space only counts as taken."""
        params = self._space.params_of(row)
        distributions = self._space.distributions()
        drawn = {name: value for name, value in params.items() if name in distributions}
        self._taken.add(self._space.key(params))
        self._told.append(drawn)
        self.next_order = max(self.next_order, row["order"] + 1)
        values = self._values(row) if row["status"] == "ok" else None
        if values and all(self._space.contains(name, value) for name, value in drawn.items()):
            used = {name: distributions[name] for name in drawn}
            self.study.add_trial(create_trial(params=drawn, distributions=used, values=values))

    def ask_first(self, params: Settings) -> None:
        """Try params before the sampler's own, unless a row has them; what they lack is drawn."""
        names = self._space.models
        models = [dict(zip(names, values, strict=True)) for values in product(*names.values())]
        taken = any(self.is_taken({**model, **params}) for model in models)
        if not taken and not any(params.items() <= row.items() for row in self._told):
            self.study.enqueue_trial(dict(params))

    def is_taken(self, params: Settings) -> bool:
        """Whether params have a row, or their row is being made."""
        return self._space.key(params) in self._taken

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next distinct params, with their row's place in the table."""
        for draws in range(MAX_REDRAWS):
            if draws == PATIENCE:  # the sampler keeps to what it knows: draw evenly instead
                self.study.sampler = self._even
            trial = self.study.ask()
            self._space.suggest(trial)
            if not self.is_taken(trial.params):
                break
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            return str(Searcher.FINISHED)
        self.study.sampler = self._sampler
        self._taken.add(self._space.key(trial.params))
        self._running[trial_id] = trial
        self.next_order += 1
        return {"params": dict(trial.params), "order": self.next_order - 1}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna COMPLETE with finite values, else FAIL: a NaN is no result."""
        trial = self._running.pop(trial_id, None)
        if trial is None:
            return
        values = self._values(result) if result and not error else None
        state = TrialState.COMPLETE if values else TrialState.FAIL
        self.study.tell(trial, values, state=state)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the rows on disk are what a search goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing; see :meth:`tell_row`."""

    def _values(self, columns: Mapping[str, Any]) -> list[float] | None:
        """The objectives' values; None where one is missing."""
        values = [columns.get(name) for name in self._objectives]
        missing = any(value is None or value != value for value in values)
        return None if missing else [float(value) for value in values if value is not None]

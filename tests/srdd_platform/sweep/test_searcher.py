"""The search, driven by hand: grid first, distinct settings, rows told truthfully. No Ray."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from srdd import SamplerConfig, load_pipeline
from srdd.errors import UserError
from srdd_platform.evaluation.rows import Row, settings_columns, to_json
from srdd_platform.sweep.best import row_config, save_best
from srdd_platform.sweep.search import OBJECTIVES, RowSearch
from srdd_platform.sweep.space import Grid, active_key, check_space, setting, suggest

BASE = SamplerConfig()
SPACE: dict[str, BaseDistribution] = {
    "resample_threshold": FloatDistribution(1e-4, 0.3, log=True),
    "refine_steps": IntDistribution(0, 4),
    "feedback": CategoricalDistribution(("updated", "kept", "none")),
    "cfg": FloatDistribution(0.0, 3.0, step=0.25),
}
GRID = Grid(cfg=0.5, feedback="updated", thresholds=(1e-3, 1e-2), refine_steps=(1, 2))
COARSE: dict[str, BaseDistribution] = {
    "refine_steps": IntDistribution(0, 1),
    "resample_threshold": CategoricalDistribution((0.1, 0.2)),
    "feedback": CategoricalDistribution(("updated", "kept")),
}  # five distinct settings: plain, and two by two refined


pytestmark = [
    pytest.mark.filterwarnings("ignore:Choices for a categorical"),
    pytest.mark.filterwarnings("ignore:Argument ``group``"),
]


@pytest.fixture(autouse=True)
def _fewer_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srdd_platform.sweep.search.MAX_REDRAWS", 100, raising=False)


def search(space: Mapping[str, BaseDistribution] = SPACE, base: SamplerConfig = BASE) -> RowSearch:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=0, multivariate=True, group=True, constant_liar=True, n_startup_trials=10
    )
    return RowSearch(space, base, sampler)


def result(fid: float, gflops: float) -> dict[str, float]:
    return {"fid": fid, "gflops_per_image": gflops}


def ask(algorithm: RowSearch, name: str) -> dict[str, Any]:
    found = algorithm.suggest(name)
    assert isinstance(found, dict)
    return found


def row_of(config: SamplerConfig, order: int, **values: Any) -> dict[str, Any]:
    """A finished row as it is read back from disk."""
    made = {"fid": 2.0, "gflops_per_image": 1.0, **values}
    shared = {"key": f"k{order}", "kind": "trial", "name": "", "order": order}
    return to_json(Row(**shared, settings=settings_columns(config), **made))


def trials(algorithm: RowSearch) -> list[optuna.trial.FrozenTrial]:
    return list(algorithm._ot_study.get_trials(deepcopy=False))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"treshold": FloatDistribution(0, 1)}, r"unknown setting 'treshold'.*resample_threshold"),
        ({"seed": IntDistribution(0, 1)}, "unknown setting 'seed'"),
        ({"resample_threshold": FloatDistribution(0.5, 1.5)}, r"resample_threshold.*1\.5"),
        ({"cfg": FloatDistribution(-1, 1)}, "cfg must be .*-1"),
        ({"refine_steps": IntDistribution(-1, 3)}, "refine_steps must be >= 0, got -1"),
        ({"refine_steps": FloatDistribution(0, 3)}, "refine_steps must be an integer"),
        ({"top_p": FloatDistribution(0.0, 1.0)}, r"top_p must be in \(0, 1\]"),
        ({"feedback": CategoricalDistribution(("updated", "upated"))}, "feedback.*'upated'"),
        ({"cfg": (0.0, 1.0)}, "cfg: a distribution of optuna"),
    ],
)
def test_a_wrong_space_is_refused_by_name(space: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_space(space, BASE)


def test_a_schedule_in_the_space_is_checked() -> None:
    with pytest.raises(UserError, match="strictly increasing"):
        check_space({"patch_nums": CategoricalDistribution(((1, 2), (2, 1)))}, BASE)


def test_a_right_space_is_taken() -> None:
    check_space(SPACE, BASE)
    check_space(COARSE, BASE)
    check_space({"patch_nums": CategoricalDistribution(((1, 2, 4), (1, 4)))}, BASE)


def test_what_is_inactive_is_not_drawn() -> None:
    study = optuna.create_study()
    for steps in (0, 2):
        study.enqueue_trial({"refine_steps": steps})
        trial = study.ask()
        suggest(trial, SPACE)
        drawn = {"cfg", "refine_steps"} | ({"resample_threshold", "feedback"} if steps else set())
        assert set(trial.params) == drawn


def test_the_grid_comes_first_and_in_order() -> None:
    algorithm = search()
    wanted = GRID.settings()
    for params in wanted:
        algorithm.ask_first(params)
    found = [ask(algorithm, f"t{i}") for i in range(6)]
    assert [one["params"] for one in found[:4]] == wanted
    assert [p["refine_steps"] for p in wanted] == [1, 1, 2, 2]  # a line of the figure at a time
    assert [one["order"] for one in found] == [0, 1, 2, 3, 4, 5]


def drive(algorithm: RowSearch, count: int) -> list[SamplerConfig]:
    made = []
    for i in range(count):
        config = setting(BASE, ask(algorithm, f"t{i}")["params"])
        made.append(config)
        fid = 1 + (config.cfg - 1) ** 2
        algorithm.on_trial_complete(f"t{i}", result(fid, 1.0 + config.refine_steps))
    return made


def test_suggestions_are_distinct_in_active_settings() -> None:
    made = drive(search(), 40)
    assert len({active_key(config) for config in made}) == 40
    plain = [config.cfg for config in made if config.refine_steps == 0]
    assert len(plain) == len(set(plain))  # threshold and feedback do not count there


def test_repeated_suggestions_are_dropped_and_drawn_again() -> None:
    algorithm = search(COARSE)
    drive(algorithm, 4)
    told = trials(algorithm)
    assert len(told) > 4  # some were drawn again
    complete = [trial for trial in told if trial.state == TrialState.COMPLETE]
    assert len({active_key(setting(BASE, trial.params)) for trial in complete}) == 4
    assert len(complete) == 4
    assert {trial.state for trial in told} == {TrialState.COMPLETE, TrialState.FAIL}


def test_an_exhausted_space_ends_the_search() -> None:
    algorithm = search(COARSE)
    made = drive(algorithm, 5)
    assert len({active_key(config) for config in made}) == 5
    assert algorithm.suggest("more") == "FINISHED"
    assert algorithm.suggest("still") == "FINISHED"
    assert algorithm.next_order == 5


def test_settings_in_flight_are_not_given_twice() -> None:
    algorithm = search(COARSE)
    found = [ask(algorithm, f"t{i}") for i in range(5)]  # none is finished
    assert len({active_key(setting(BASE, one["params"])) for one in found}) == 5
    assert algorithm.suggest("t5") == "FINISHED"
    states = [trial.state for trial in trials(algorithm)]
    assert states.count(TrialState.RUNNING) == 5
    assert TrialState.COMPLETE not in states  # there was nothing to answer with
    algorithm.on_trial_complete("t0", result(1.0, 2.0))
    assert [t.values for t in trials(algorithm) if t.state == TrialState.COMPLETE] == [[1.0, 2.0]]


def test_two_objectives_reach_optuna_in_order() -> None:
    algorithm = search()
    assert OBJECTIVES == ("fid", "gflops_per_image")
    ask(algorithm, "t")
    algorithm.on_trial_complete("t", {"gflops_per_image": 7.0, "fid": 3.0, "nfe": 1.0})
    (trial,) = trials(algorithm)
    assert trial.state == TrialState.COMPLETE
    assert trial.values == [3.0, 7.0]
    assert [d.name for d in algorithm._ot_study.directions] == ["MINIMIZE", "MINIMIZE"]


@pytest.mark.parametrize("values", [(0.0, 2.0), (3.0, 0.0), (0.0, 0.0)])
def test_a_zero_is_a_value(values: tuple[float, float]) -> None:
    """A perfect FID, or a setting without cost, is answered like any other."""
    algorithm = search({"refine_steps": IntDistribution(0, 1)})
    for name in ("t0", "t1"):
        ask(algorithm, name)
        algorithm.on_trial_complete(name, result(*values))
    assert algorithm.suggest("t2") == "FINISHED"
    told = [tuple(t.values) for t in trials(algorithm) if t.state == TrialState.COMPLETE]
    assert set(told) == {values}


@pytest.mark.parametrize(
    "reported",
    [None, result(math.nan, 1.0), result(1.0, math.nan), {"fid": 1.0}],
    ids=["nothing", "nan fid", "nan cost", "half"],
)
def test_what_is_no_result_is_a_failure(reported: dict[str, float] | None) -> None:
    algorithm = search()
    first = ask(algorithm, "t")
    algorithm.on_trial_complete("t", reported)
    assert [trial.state for trial in trials(algorithm)] == [TrialState.FAIL]
    assert active_key(setting(BASE, first["params"])) in algorithm._taken  # not tried again


def test_an_error_is_a_failure_whatever_was_reported() -> None:
    algorithm = search()
    ask(algorithm, "t")
    algorithm.on_trial_complete("t", result(1.0, 1.0), error=True)
    assert [trial.state for trial in trials(algorithm)] == [TrialState.FAIL]


def test_a_failed_setting_is_not_suggested_again() -> None:
    algorithm = search(COARSE)
    keys = set()
    for i in range(5):
        keys.add(active_key(setting(BASE, ask(algorithm, f"t{i}")["params"])))
        algorithm.on_trial_complete(f"t{i}", result(math.nan, 1.0))
    assert len(keys) == 5
    assert algorithm.suggest("t5") == "FINISHED"
    assert {trial.state for trial in trials(algorithm)} == {TrialState.FAIL}


def test_a_trial_reported_twice_counts_once() -> None:
    algorithm = search()
    ask(algorithm, "t")
    algorithm.on_trial_complete("t", result(1.0, 2.0))
    algorithm.on_trial_complete("t", result(5.0, 6.0))
    algorithm.on_trial_complete("unknown", result(5.0, 6.0))
    assert [trial.values for trial in trials(algorithm)] == [[1.0, 2.0]]


def test_rows_on_disk_are_told_with_their_values() -> None:
    algorithm = search()
    configs = [
        SamplerConfig(cfg=0.5, refine_steps=1, resample_threshold=1e-3),
        SamplerConfig(cfg=0.0),  # plain: threshold and feedback are null in its row
        SamplerConfig(cfg=2.0, refine_steps=4, resample_threshold=0.3, feedback="none"),
    ]
    for order, config in enumerate(configs):
        algorithm.tell_row(row_of(config, order, fid=float(order), gflops_per_image=9.0 - order))
    told = trials(algorithm)
    assert [trial.state for trial in told] == [TrialState.COMPLETE] * 3
    assert [trial.values for trial in told] == [[0.0, 9.0], [1.0, 8.0], [2.0, 7.0]]
    assert told[0].params == {
        "cfg": 0.5, "refine_steps": 1, "resample_threshold": 1e-3, "feedback": "updated",
    }  # fmt: skip
    assert told[1].params == {"cfg": 0.0, "refine_steps": 0}
    assert algorithm.next_order == 3


def test_rows_on_disk_are_not_made_again_and_orders_go_on() -> None:
    algorithm = search(COARSE)
    done = [
        SamplerConfig(),
        SamplerConfig(refine_steps=1, resample_threshold=0.1, feedback="kept"),
    ]
    algorithm.tell_row(row_of(done[0], 3))
    algorithm.tell_row(row_of(done[1], 11))
    for params in ({"refine_steps": 0}, {"refine_steps": 1, "resample_threshold": 0.2}):
        algorithm.ask_first(params)
    found = [ask(algorithm, f"t{i}") for i in range(3)]
    assert found[0]["params"]["resample_threshold"] == 0.2  # the first has its row
    assert [one["order"] for one in found] == [12, 13, 14]
    keys = {active_key(setting(BASE, one["params"])) for one in found}
    assert len(keys) == 3
    assert keys.isdisjoint(map(active_key, done))
    assert algorithm.suggest("t3") == "FINISHED"


def test_a_failed_row_is_taken_and_no_result() -> None:
    algorithm = search({"refine_steps": IntDistribution(0, 1)})
    algorithm.tell_row(row_of(SamplerConfig(), 0, fid=None, status="failed", error="nan"))
    assert trials(algorithm) == []
    assert ask(algorithm, "t0")["params"] == {"refine_steps": 1}
    assert algorithm.suggest("t1") == "FINISHED"


def test_a_row_outside_the_space_only_counts_as_taken() -> None:
    algorithm = search()
    outside = SamplerConfig(cfg=7.0)
    algorithm.tell_row(row_of(outside, 0))
    assert trials(algorithm) == []
    assert active_key(outside) in algorithm._taken
    assert algorithm.next_order == 1


def test_settings_outside_the_space_keep_their_value() -> None:
    base = SamplerConfig(cfg=1.5, top_k=7, feedback="kept")
    algorithm = search({"refine_steps": IntDistribution(0, 1)}, base)
    config = setting(base, ask(algorithm, "t")["params"])
    assert (config.cfg, config.top_k, config.feedback) == (1.5, 7, "kept")


def test_a_resumed_search_does_not_repeat_its_suggestions() -> None:
    """Killed after six rows, and given again."""
    first = search()
    made = []
    for i in range(6):
        config = setting(BASE, ask(first, f"t{i}")["params"])
        made.append(config)
        first.on_trial_complete(f"t{i}", result(1.0 + i, 2.0))
    again = search()
    for order, config in enumerate(made):
        again.tell_row(row_of(config, order, fid=1.0 + order, gflops_per_image=2.0))
    more = [setting(BASE, ask(again, f"n{i}")["params"]) for i in range(6)]
    assert len({active_key(config) for config in (*made, *more)}) == 12


def test_a_finite_space_is_searched_to_its_end() -> None:
    space = {"refine_steps": IntDistribution(0, 2), "cfg": FloatDistribution(0, 3, step=0.25)}
    algorithm = search(space)
    made = 0
    while made < 39:
        found = algorithm.suggest(f"t{made}")
        if found == "FINISHED":
            break
        assert isinstance(found, dict)
        config = setting(BASE, found["params"])
        cost = 1.0 + config.refine_steps
        algorithm.on_trial_complete(f"t{made}", result(cost + (config.cfg - 1) ** 2, cost))
        made += 1
    assert made == 39


def test_a_row_of_another_category_only_counts_as_taken() -> None:
    algorithm = search({
        "refine_steps": IntDistribution(0, 2),
        "feedback": CategoricalDistribution(("updated", "kept")),
    })  # fmt: skip
    outside = SamplerConfig(refine_steps=1, feedback="none")
    algorithm.tell_row(row_of(outside, 0))
    assert trials(algorithm) == []
    assert active_key(outside) in algorithm._taken


def test_a_search_over_schedules_resumes() -> None:
    choices = ((1, 2, 3, 4), (1, 2, 4), (1, 4))
    algorithm = search({"patch_nums": CategoricalDistribution(choices)})
    algorithm.tell_row(row_of(SamplerConfig(patch_nums=(1, 4)), 0))
    assert [trial.values for trial in trials(algorithm)] == [[2.0, 1.0]]
    found = {tuple(ask(algorithm, f"t{i}")["params"]["patch_nums"]) for i in range(2)}
    assert found == {(1, 2, 3, 4), (1, 2, 4)}


def test_the_best_row_gives_its_settings_back() -> None:
    config = SamplerConfig(cfg=1.0, cfg_ramp="window", cfg_window=(0.0, 0.5))
    assert row_config(row_of(config, 0)).active() == config.active()


def test_a_damaged_selection_is_made_anew(tmp_path: Path, tiny_pipeline: Path) -> None:
    row = {"key": "a", "fid": 1.0, "extractor": "x"}
    save_best(tmp_path, tiny_pipeline, row, SamplerConfig(cfg=1.0))
    kept = tmp_path / "best" / "selection.json"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:20])
    save_best(tmp_path, tiny_pipeline, row, SamplerConfig(cfg=2.0))
    assert kept.read_bytes() == whole
    assert load_pipeline(tmp_path / "best").sampler.cfg == 2.0
    save_best(tmp_path, tiny_pipeline, row, SamplerConfig(cfg=3.0))  # nothing has changed
    assert load_pipeline(tmp_path / "best").sampler.cfg == 2.0


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(),
        SamplerConfig(cfg=1.5, cfg_ramp="constant", top_k=5, top_p=0.9, epsilon=0.01),
        SamplerConfig(refine_steps=3, resample="simple", feedback="kept"),
        SamplerConfig(refine_steps=3, resample_threshold=0.3, patch_nums=(1, 2, 4)),
    ],
)
def test_a_row_gives_its_settings_back(config: SamplerConfig) -> None:
    assert row_config(row_of(config, 0)).active() == config.active()

"""The searcher, driven by hand: first params first, distinct, rows told truthfully. No Ray."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from srdd import SamplerConfig
from srdd_platform.evaluation.rows import Row, settings_columns, to_json
from srdd_platform.sweep.definition import Axis, Categorical, Float, Int, product
from srdd_platform.sweep.searcher import StudySearcher
from srdd_platform.sweep.space import SearchSpace

BASE = SamplerConfig()
OBJECTIVES = ("fid", "gflops_per_image")
AXES: dict[str, Axis] = {
    "resample_threshold": Float(1e-4, 0.3, log=True),
    "refine_steps": Int(0, 4),
    "feedback": Categorical(("updated", "kept", "none")),
    "cfg": Float(0.0, 3.0, step=0.25),
}
FIRST = product(
    cfg=[0.5], feedback=["updated"], refine_steps=[1, 2], resample_threshold=[1e-3, 1e-2]
)
COARSE: dict[str, Axis] = {
    "refine_steps": Int(0, 1),
    "resample_threshold": Categorical((0.1, 0.2)),
    "feedback": Categorical(("updated", "kept")),
}  # five distinct settings: plain, and two by two refined


pytestmark = [
    pytest.mark.filterwarnings("ignore:Choices for a categorical"),
    pytest.mark.filterwarnings("ignore:Argument ``group``"),
]


@pytest.fixture(autouse=True)
def _fewer_redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srdd_platform.sweep.searcher.MAX_REDRAWS", 100)


def space_of(
    axes: Mapping[str, Axis] = AXES,
    base: SamplerConfig = BASE,
    models: Mapping[str, tuple[str, ...]] | None = None,
) -> SearchSpace:
    return SearchSpace(settings=axes, base=base, models=models or {})


def search(
    axes: Mapping[str, Axis] = AXES, base: SamplerConfig = BASE, **more: Any
) -> StudySearcher:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=0, multivariate=True, group=True, constant_liar=True, n_startup_trials=10
    )
    return StudySearcher(space_of(axes, base, **more), OBJECTIVES, sampler)


def setting(params: Mapping[str, Any]) -> SamplerConfig:
    config = space_of().config(params)
    assert isinstance(config, SamplerConfig)
    return config


def active_key(config: SamplerConfig) -> str:
    return str(sorted(config.active().items()))


def vars_of(config: SamplerConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config)}


def result(fid: float, gflops: float) -> dict[str, float]:
    return {"fid": fid, "gflops_per_image": gflops}


def ask(algorithm: StudySearcher, name: str) -> dict[str, Any]:
    found = algorithm.suggest(name)
    assert isinstance(found, dict)
    return found


def row_of(config: SamplerConfig, order: int, **values: Any) -> dict[str, Any]:
    """A finished row as it is read back from disk."""
    made = {"fid": 2.0, "gflops_per_image": 1.0, **values}
    shared = {"key": f"k{order}", "kind": "trial", "name": "", "order": order}
    return to_json(Row(**shared, settings=settings_columns(config), **made))


def trials(algorithm: StudySearcher) -> list[optuna.trial.FrozenTrial]:
    return list(algorithm.study.get_trials(deepcopy=False))


def test_the_first_params_come_first_and_in_order() -> None:
    algorithm = search()
    wanted = FIRST
    for params in wanted:
        algorithm.ask_first(params)
    found = [ask(algorithm, f"t{i}") for i in range(6)]
    assert [one["params"] for one in found[:4]] == wanted
    assert [p["refine_steps"] for p in wanted] == [1, 1, 2, 2]  # a line of the figure at a time
    assert [one["order"] for one in found] == [0, 1, 2, 3, 4, 5]


def drive(algorithm: StudySearcher, count: int) -> list[SamplerConfig]:
    made = []
    for i in range(count):
        config = setting(ask(algorithm, f"t{i}")["params"])
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
    assert len({active_key(setting(trial.params)) for trial in complete}) == 4
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
    assert len({active_key(setting(one["params"])) for one in found}) == 5
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
    assert [d.name for d in algorithm.study.directions] == ["MINIMIZE", "MINIMIZE"]


@pytest.mark.parametrize("values", [(0.0, 2.0), (3.0, 0.0), (0.0, 0.0)])
def test_a_zero_is_a_value(values: tuple[float, float]) -> None:
    """A perfect FID, or a setting without cost, is answered like any other."""
    algorithm = search({"refine_steps": Int(0, 1)})
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
    assert algorithm.is_taken(first["params"])  # not tried again


def test_an_error_is_a_failure_whatever_was_reported() -> None:
    algorithm = search()
    ask(algorithm, "t")
    algorithm.on_trial_complete("t", result(1.0, 1.0), error=True)
    assert [trial.state for trial in trials(algorithm)] == [TrialState.FAIL]


def test_a_failed_setting_is_not_suggested_again() -> None:
    algorithm = search(COARSE)
    keys = set()
    for i in range(5):
        keys.add(active_key(setting(ask(algorithm, f"t{i}")["params"])))
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
    keys = {active_key(setting(one["params"])) for one in found}
    assert len(keys) == 3
    assert keys.isdisjoint(map(active_key, done))
    assert algorithm.suggest("t3") == "FINISHED"


def test_a_failed_row_is_taken_and_no_result() -> None:
    algorithm = search({"refine_steps": Int(0, 1)})
    algorithm.tell_row(row_of(SamplerConfig(), 0, fid=None, status="failed", error="nan"))
    assert trials(algorithm) == []
    assert ask(algorithm, "t0")["params"] == {"refine_steps": 1}
    assert algorithm.suggest("t1") == "FINISHED"


def test_a_row_outside_the_space_only_counts_as_taken() -> None:
    algorithm = search()
    outside = SamplerConfig(cfg=7.0)
    algorithm.tell_row(row_of(outside, 0))
    assert trials(algorithm) == []
    assert algorithm.is_taken(vars_of(outside))
    assert algorithm.next_order == 1


def test_settings_outside_the_space_keep_their_value() -> None:
    base = SamplerConfig(cfg=1.5, top_k=7, feedback="kept")
    algorithm = search({"refine_steps": Int(0, 1)}, base)
    config = space_of(base=base).config(ask(algorithm, "t")["params"])
    assert (config.cfg, config.top_k, config.feedback) == (1.5, 7, "kept")


def test_a_resumed_search_does_not_repeat_its_suggestions() -> None:
    """Killed after six rows, and given again."""
    first = search()
    made = []
    for i in range(6):
        config = setting(ask(first, f"t{i}")["params"])
        made.append(config)
        first.on_trial_complete(f"t{i}", result(1.0 + i, 2.0))
    again = search()
    for order, config in enumerate(made):
        again.tell_row(row_of(config, order, fid=1.0 + order, gflops_per_image=2.0))
    more = [setting(ask(again, f"n{i}")["params"]) for i in range(6)]
    assert len({active_key(config) for config in (*made, *more)}) == 12


def test_a_finite_space_is_searched_to_its_end() -> None:
    space = {"refine_steps": Int(0, 2), "cfg": Float(0, 3, step=0.25)}
    algorithm = search(space)
    made = 0
    while made < 39:
        found = algorithm.suggest(f"t{made}")
        if found == "FINISHED":
            break
        assert isinstance(found, dict)
        config = setting(found["params"])
        cost = 1.0 + config.refine_steps
        algorithm.on_trial_complete(f"t{made}", result(cost + (config.cfg - 1) ** 2, cost))
        made += 1
    assert made == 39


def test_a_row_of_another_category_only_counts_as_taken() -> None:
    algorithm = search({
        "refine_steps": Int(0, 2),
        "feedback": Categorical(("updated", "kept")),
    })  # fmt: skip
    outside = SamplerConfig(refine_steps=1, feedback="none")
    algorithm.tell_row(row_of(outside, 0))
    assert trials(algorithm) == []
    assert algorithm.is_taken(vars_of(outside))


def test_a_search_over_schedules_resumes() -> None:
    choices = ((1, 2, 3, 4), (1, 2, 4), (1, 4))
    algorithm = search({"patch_nums": Categorical(choices)})
    algorithm.tell_row(row_of(SamplerConfig(patch_nums=(1, 4)), 0))
    assert [trial.values for trial in trials(algorithm)] == [[2.0, 1.0]]
    found = {tuple(ask(algorithm, f"t{i}")["params"]["patch_nums"]) for i in range(2)}
    assert found == {(1, 2, 3, 4), (1, 2, 4)}


def test_params_that_are_not_complete_are_drawn_to_their_end() -> None:
    algorithm = search()
    algorithm.ask_first({"refine_steps": 3})
    algorithm.ask_first({"cfg": 2.5, "refine_steps": 0})
    one, two = ask(algorithm, "t0")["params"], ask(algorithm, "t1")["params"]
    assert one["refine_steps"] == 3
    assert one.keys() == AXES.keys()
    assert two == {"refine_steps": 0, "cfg": 2.5}


def test_params_whose_row_is_there_are_not_tried_first_again() -> None:
    algorithm = search()
    algorithm.tell_row(row_of(SamplerConfig(cfg=1.0, refine_steps=3, feedback="kept"), 0))
    algorithm.ask_first({"refine_steps": 3, "feedback": "kept"})  # the rest was drawn
    algorithm.ask_first({"refine_steps": 0, "cfg": 0.25})
    assert ask(algorithm, "t0")["params"] == {"refine_steps": 0, "cfg": 0.25}


MODELS = {"mask": ("markov", "block_causal")}


def test_a_model_is_drawn_like_a_setting() -> None:
    algorithm = search({"refine_steps": Int(0, 1)}, models=MODELS)
    found = [ask(algorithm, f"t{i}")["params"] for i in range(4)]
    pairs = {(one["mask"], one["refine_steps"]) for one in found}
    assert pairs == {("markov", 0), ("markov", 1), ("block_causal", 0), ("block_causal", 1)}
    assert algorithm.suggest("t4") == "FINISHED"


def test_rows_of_several_models_are_told_with_their_model() -> None:
    algorithm = search({"refine_steps": Int(0, 1)}, models=MODELS)
    algorithm.tell_row({**row_of(SamplerConfig(), 0), "mask": "block_causal"})
    (told,) = trials(algorithm)
    assert told.params == {"mask": "block_causal", "refine_steps": 0}
    assert algorithm.is_taken({"mask": "block_causal", "refine_steps": 0})
    assert not algorithm.is_taken({"mask": "markov", "refine_steps": 0})


def test_each_objective_goes_its_own_way() -> None:
    sampler = optuna.samplers.RandomSampler(seed=0)
    algorithm = StudySearcher(space_of(), ("is", "latency_ms", "precision"), sampler)
    assert [d.name for d in algorithm.study.directions] == ["MAXIMIZE", "MINIMIZE", "MAXIMIZE"]
    ask(algorithm, "t")
    algorithm.on_trial_complete("t", {"is": 3.0, "latency_ms": 7.0, "precision": 0.5, "fid": 1.0})
    assert trials(algorithm)[0].values == [3.0, 7.0, 0.5]


def test_first_params_without_a_model_are_tried_on_one_that_is_drawn() -> None:
    first = {"refine_steps": 1, "feedback": "kept"}
    algorithm = search(COARSE, models=MODELS)
    algorithm.ask_first(first)
    params = ask(algorithm, "t")["params"]
    assert params.items() > first.items()
    assert params["mask"] in MODELS["mask"]
    again = search(COARSE, models=MODELS)
    made = SamplerConfig(**{name: v for name, v in params.items() if name != "mask"})
    again.tell_row({**row_of(made, 0), "mask": params["mask"]})
    again.ask_first(first)
    assert [trial.state for trial in trials(again)] == [TrialState.COMPLETE]

"""What a search draws, and which spaces, first params and settings of models are refused."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import optuna
import pytest
from generators import ColourSettings, make_colours

from srdd import SamplerConfig
from srdd.errors import UserError
from srdd_platform.sweep.definition import Axis, Categorical, Float, Int
from srdd_platform.sweep.space import SearchSpace, check_space, contains, distribution, fit_space

BASE = SamplerConfig()
AXES: dict[str, Axis] = {
    "resample_threshold": Float(1e-4, 0.3, log=True),
    "refine_steps": Int(0, 4),
    "feedback": Categorical(("updated", "kept", "none")),
    "cfg": Float(0.0, 3.0, step=0.25),
}
pytestmark = pytest.mark.filterwarnings("ignore:Choices for a categorical")


def space_of(axes: Mapping[str, Any], base: Any = BASE, **models: tuple[str, ...]) -> SearchSpace:
    return SearchSpace(settings=axes, base=base, models=models)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"treshold": Float(0, 1)}, r"unknown setting 'treshold'.*resample_threshold"),
        ({"seed": Int(0, 1)}, "unknown setting 'seed'"),
        (
            {"refine_steps": Int(0, 1), "resample_threshold": Float(0.5, 1.5)},
            r"resample_threshold.*1\.5",
        ),
        ({"cfg": Float(-1, 1)}, "cfg must be .*-1"),
        ({"refine_steps": Int(-1, 3)}, "refine_steps must be >= 0, got -1"),
        ({"refine_steps": Float(0, 3)}, "refine_steps must be an integer"),
        ({"top_p": Float(0.0, 1.0)}, r"top_p must be in \(0, 1\]"),
        ({"feedback": Categorical(("updated", "upated"))}, "feedback.*'upated'"),
        ({"cfg": (0.0, 1.0)}, r"cfg: an axis must be Float, Int or Categorical, got \(0.0, 1.0\)"),
        ({"patch_nums": Categorical(((1, 2), (2, 1)))}, "strictly increasing"),
        ({"feedback": Categorical(("updated", "kept"))}, "varies feedback, which has no effect"),
        (
            {"cfg": Float(0, 1), "cfg_window": Categorical(((0.0, 0.5), (0.0, 1.0)))},
            "varies cfg_window, which has no effect",
        ),
    ],
)
def test_a_wrong_space_is_refused_by_name(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_space(space_of(axes))


@pytest.mark.parametrize(
    "axes",
    [
        AXES,
        {"patch_nums": Categorical(((1, 2, 4), (1, 4)))},
        {
            "cfg_window": Categorical(((0.0, 0.5), (0.0, 1.0))),
            "cfg_ramp": Categorical(("linear", "window")),
            "cfg": Float(0, 1),
        },
    ],
)
def test_a_right_space_is_taken(axes: dict[str, Any]) -> None:
    check_space(space_of(axes))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"topp": 0.5}, "first: the space has no topp; it has "),
        ({"cfg": 3.5}, r"first: cfg 3\.5 is outside the search space"),
        ({"cfg": 0.3}, r"first: cfg 0\.3 is outside the search space"),
        ({"feedback": "all"}, "first: feedback 'all' is outside"),
        ({"top_p": 0.9}, r"first: the space has no top_p; it has"),
        ({"mask": "previous"}, "first: mask 'previous' is outside"),
    ],
)
def test_first_params_outside_the_space_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_space(space_of(AXES, mask=("markov", "block_causal")), [params])


def test_first_params_need_not_be_complete() -> None:
    space = space_of(AXES, mask=("markov", "block_causal"))
    check_space(space, [{}, {"cfg": 0.75}, {"mask": "markov"}, {"refine_steps": 4, "cfg": 3}])


@pytest.mark.parametrize(
    "axis",
    [
        Float(0.0, 3.0, step=0.25), Float(1e-4, 0.3, log=True), Int(0, 4), Int(1, 9, step=2),
        Categorical(("updated", "kept")), Categorical((0.0, 0.5)),
    ],
)  # fmt: skip
def test_what_an_axis_contains_is_what_optuna_can_draw(axis: Axis) -> None:
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    drawn = [study.ask({"x": distribution(axis)}).params["x"] for _ in range(50)]
    assert all(contains(axis, value) for value in drawn)
    for value in (-1, 9.5, 0.3001, "other", None, float("nan"), True):
        assert not contains(axis, value)


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Settings of which each can make others inactive, with odd names."""

    a: int = 0
    b: int = 0  # while a > 0
    c: int = 0  # while b > 0
    d: int = 0  # while e == 0
    e: int = 0  # while d == 0

    def active(self) -> dict[str, Any]:
        kept = {"a": True, "b": self.a > 0, "c": self.a > 0 and self.b > 0,
                "d": self.e == 0 or self.d > 0, "e": self.d == 0}  # fmt: skip
        return {name: value for name, value in asdict(self).items() if kept[name]}


def drawn(space: SearchSpace, fixed: Mapping[str, Any]) -> list[str]:
    """The names that are drawn, in order, where some values are fixed."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(dict(fixed))
    trial = study.ask()
    space.suggest(trial)
    return list(trial.params)


@pytest.mark.parametrize(
    ("axes", "base", "fixed", "names"),
    [
        (AXES, BASE, {"refine_steps": 0}, ["refine_steps", "cfg"]),
        (
            AXES, BASE, {"refine_steps": 2},
            ["refine_steps", "cfg", "resample_threshold", "feedback"],
        ),
        (AXES, SamplerConfig(refine_steps=2), {"refine_steps": 0}, ["refine_steps", "cfg"]),
        (
            AXES, SamplerConfig(refine_steps=2, cfg=1.0), {"refine_steps": 1},
            ["refine_steps", "cfg", "resample_threshold", "feedback"],
        ),
        (dict.fromkeys("cba", Int(0, 1)), Nested(), {"a": 0}, ["a"]),
        (dict.fromkeys("cba", Int(0, 1)), Nested(), {"a": 1, "b": 0}, ["a", "b"]),
        (dict.fromkeys("cba", Int(0, 1)), Nested(), {"a": 1, "b": 1}, ["a", "b", "c"]),
        (dict.fromkeys("cba", Int(0, 1)), Nested(a=1, b=1), {"a": 0}, ["a"]),
        (dict.fromkeys("cb", Int(0, 1)), Nested(a=1), {"b": 1}, ["b", "c"]),
        (dict.fromkeys("de", Int(0, 1)), Nested(), {"d": 1}, ["d"]),  # each hides the other
        (dict.fromkeys("de", Int(0, 1)), Nested(), {"d": 0}, ["d", "e"]),
        ({"noise": Float(0, 1), "steps": Int(1, 4)}, ColourSettings(), {"noise": 0.0}, ["noise"]),
        (
            {"steps": Int(1, 4), "noise": Float(0, 1)}, ColourSettings(), {"noise": 0.5},
            ["noise", "steps"],
        ),
    ],
)  # fmt: skip
def test_what_is_inactive_is_not_drawn(
    axes: dict[str, Axis], base: Any, fixed: dict[str, Any], names: list[str]
) -> None:
    assert drawn(space_of(axes, base), fixed) == names


def suggest_by_names(trial: optuna.Trial, axes: Mapping[str, Axis]) -> None:
    """How commit 55e1f42 drew settings: it knew the three that refinement needs by name."""
    refining = ("resample", "resample_threshold", "feedback")
    steps = 1
    for name in sorted(axes, key=lambda name: name in refining):
        axis = axes[name]
        if name in refining and not steps:
            continue
        if isinstance(axis, Categorical):
            trial.suggest_categorical(name, axis.choices)
        elif isinstance(axis, Int):
            value = trial.suggest_int(name, axis.low, axis.high, step=axis.step, log=axis.log)
            steps = value if name == "refine_steps" else steps
        else:
            trial.suggest_float(name, axis.low, axis.high, step=axis.step, log=axis.log)


def studied(suggest: Any, seed: int) -> list[list[tuple[str, Any]]]:
    """The params of a study of 60 trials, of which up to three run at once."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=12
    )
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    running, made = [], []
    for number in range(60):
        trial = study.ask()
        suggest(trial)
        made.append(list(trial.params.items()))
        running.append(trial)
        if len(running) == 3:
            done = running.pop(number % 2)
            study.tell(done, [(done.params["cfg"] - 1) ** 2, 1.0 + done.params["refine_steps"]])
    return made


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("seed", [0, 7])
def test_the_digits_sweep_suggests_what_it_suggested_before(seed: int) -> None:
    space = space_of(AXES)
    assert studied(space.suggest, seed) == studied(lambda t: suggest_by_names(t, AXES), seed)


def check_unconditional(config: SamplerConfig) -> None:
    if config.cfg > 0:
        raise UserError("cfg must be 0: an unconditional model has nothing to guide", field="cfg")


@pytest.mark.parametrize(
    "axis", [Float(0.0, 3.0), Float(0.0, 3.0, step=0.25), Categorical((0.0, 1.0))]
)
def test_a_setting_that_a_model_cannot_vary_is_left_out(axis: Axis) -> None:
    space, left_out = fit_space(space_of({**AXES, "cfg": axis}), check_unconditional)
    assert set(space.settings) == {"refine_steps", "resample_threshold", "feedback"}
    assert left_out == {"cfg": "cfg must be 0: an unconditional model has nothing to guide"}
    assert fit_space(space, check_unconditional) == (space, {})


@pytest.mark.parametrize("axis", [Int(1, 9), Int(8, 9), Categorical((1, 2, 9))])
def test_a_value_that_a_model_refuses_is_refused_by_name(axis: Axis) -> None:
    with pytest.raises(UserError, match="steps must be from 1 to 8, got 9"):
        fit_space(space_of({"steps": axis}, ColourSettings()), make_colours().check_settings)


def test_models_and_settings_make_a_key_together() -> None:
    space = space_of(AXES, mask=("markov", "block_causal"))
    one = {"mask": "markov", "cfg": 1.0}
    assert space.model(one) == ("markov",)
    assert space.config(one) == SamplerConfig(cfg=1.0)
    assert space.key(one) == space.key({**one, "feedback": "none"})  # inactive
    assert len({space.key(one), space.key({**one, "mask": "block_causal"})}) == 2


def test_the_order_of_axes_of_models_is_theirs() -> None:
    names = ("schedule", "mask")
    space = SearchSpace(settings=AXES, base=BASE, models={name: ("x", "y") for name in names})
    assert space.model({"mask": "x", "schedule": "y", "cfg": 0.0}) == ("y", "x")
    assert drawn(space, {"refine_steps": 0})[:2] == list(names)

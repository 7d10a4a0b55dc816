"""What the figures read of a config.json: the form of today, the earlier one, damaged ones."""

from typing import Any

import pytest

from srdd.errors import UserError
from srdd_platform.report.setup import read_setup
from srdd_platform.report.specs import Frontier, Lines, Parallel, figure_to_dict

GRID = {"cfg": 0.5, "feedback": "kept", "thresholds": [0.01, 0.1], "refine_steps": [1, 4]}
LINES = Lines(x="resample_threshold", series="refine_steps", fixed={"cfg": 0.5, "feedback": "kept"})


def test_a_sweep_begun_with_a_grid_has_its_figures_and_first_settings() -> None:
    setup = read_setup({"settings": {"grid": GRID}, "runtime": {"model": "runs/a"}})
    assert list(setup.figures) == [Frontier(), LINES, Parallel()]
    assert [(one["refine_steps"], one["resample_threshold"]) for one in setup.first] == [
        (1, 0.01), (1, 0.1), (4, 0.01), (4, 0.1)
    ]  # fmt: skip
    assert all((one["cfg"], one["feedback"]) == (0.5, "kept") for one in setup.first)
    assert list(setup.objectives) == ["fid", "gflops_per_image"]
    assert setup.varies("cfg")  # nothing is known of the space


def test_a_sweep_begun_with_a_grid_that_goes_on_has_the_figures_it_lists_now() -> None:
    listed = [Parallel(), Lines(x="cfg")]
    runtime = {"figures": [figure_to_dict(figure) for figure in listed]}
    setup = read_setup({"settings": {"grid": GRID}, "runtime": runtime})
    assert list(setup.figures) == listed
    assert len(setup.first) == 4


def test_a_space_says_what_varies_and_on_what_scale() -> None:
    space = {
        "p": {"name": "FloatDistribution", "attributes": {"low": 1e-4, "high": 1, "log": True}},
        "cfg": {"name": "FloatDistribution", "attributes": {"low": 0, "high": 90, "log": False}},
        "feedback": {"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}},
    }
    base = {"patch_nums": None, "window": [0.0, 0.75], "p": 0.01, "cfg": 0.0}
    settings = {"space": space, "base": base, "models": {"mask": ["markov"]},
                "first": [{"window": [0, 1]}], "objectives": ["accuracy", "nfe"]}  # fmt: skip
    setup = read_setup({"settings": settings, "hypervolume_reference": {"fid": 3}})
    assert [setup.varies(name) for name in ("p", "mask", "patch_nums")] == [True, True, False]
    assert (setup.is_log("p", [0.1, 0.2]), setup.is_log("cfg", [1, 90])) == (True, False)
    assert (setup.is_log("n", [1, 90]), setup.is_log("n", [0, 90])) == (True, False)
    assert (setup.null_text("patch_nums"), setup.null_text("p")) == ("default", "inactive")
    assert setup.base["window"] == "0.0,0.75"  # as a table has it
    assert setup.model_columns({"key": "a", "mask": "markov", "p": 0.1, "n": 3}) == ["mask"]
    assert (list(setup.objectives), setup.hypervolume_reference) == (
        ["accuracy", "nfe"],
        {"fid": 3},
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": {"cfg": 2.0}}, r"grid in config\.json must have cfg, feedback"),
        ({"grid": {**GRID, "thresholds": 0.1}}, r"grid in config\.json: thresholds must be a list"),
        ({"figures": None}, r"figures in config\.json must be a list of figures, got None"),
    ],
)
def test_another_form_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_setup({"settings": settings})


@pytest.mark.parametrize("part", [3, "x", [1, 2], {"a": 3}, None])
def test_other_damage_leaves_out_what_it_damages(part: Any) -> None:
    names = ("space", "models", "base", "first", "objectives")
    setup = read_setup({"settings": dict.fromkeys(names, part), "runtime": part})
    assert list(setup.figures) == [Frontier(), Parallel()]
    assert list(setup.objectives) == ["fid", "gflops_per_image"]

"""Figures as values: the forms in config.json, the refusals, and what they need imported."""

import json
import subprocess
import sys
from typing import Any

import pytest

from srdd.errors import UserError
from srdd_platform.report.specs import (
    Figure,
    Frontier,
    Lines,
    Parallel,
    check_figures,
    figure_from_dict,
    figure_to_dict,
    figures_from_list,
)

LINES = Lines(x="noise", series="levels", fixed={"mask": "markov", "cfg": 0.5}, metric="kid")


@pytest.mark.parametrize(
    ("figure", "values"),
    [
        (Frontier(), {"kind": "frontier"}),
        (
            Frontier(metric="kid", cost="nfe"),
            {"kind": "frontier", "metric": "kid", "cost": "nfe"},
        ),
        (Lines(x="cfg"), {"kind": "lines", "x": "cfg"}),
        (
            LINES,
            {
                "kind": "lines",
                "x": "noise",
                "series": "levels",
                "fixed": {"mask": "markov", "cfg": 0.5},
                "metric": "kid",
            },
        ),
        (Parallel(), {"kind": "parallel"}),
    ],
)
def test_a_figure_comes_back_from_its_json_form(figure: Figure, values: dict[str, Any]) -> None:
    assert figure_to_dict(figure) == values
    assert figure_from_dict(json.loads(json.dumps(values))) == figure


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("lines", r"a figure's kind must be one of frontier, lines, parallel, got None"),
        ({"kind": ["lines"]}, r"a figure's kind must be one of frontier, lines, parallel, got \["),
        ({"kind": "heat"}, r"a figure's kind must be one of .* got 'heat'"),
        ({"kind": "frontier", "x": "cfg"}, r"figures: frontier: unknown setting 'x'"),
        ({"kind": "frontier", "metric": "fit"}, r"metric must be one of fid, is, .* got 'fit'"),
        ({"kind": "frontier", "metric": ["fid"]}, r"metric must be one of fid"),
        ({"kind": "parallel", "cost": "fid"}, r"cost must be null or one of nfe, .* got 'fid'"),
        ({"kind": "lines"}, r"figures: lines: missing 1 required .* 'x'"),
        ({"kind": "lines", "x": 3}, r"lines: x must be the name of a setting, got 3"),
        ({"kind": "lines", "x": "cfg", "series": ""}, r"series must be null or the name of a"),
        ({"kind": "lines", "x": "cfg", "series": "cfg"}, r"series must be another setting than x"),
        ({"kind": "lines", "x": "cfg", "fixed": {"cfg": 1}}, r"fixed must be neither x nor series"),
        ({"kind": "lines", "x": "cfg", "fixed": {"p": {}}}, r"fixed must be settings with their"),
        ({"kind": "lines", "x": "cfg", "fixed": ["a"]}, r"fixed must be settings with their"),
    ],
)
def test_what_is_no_figure_is_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        figures_from_list([{"kind": "parallel"}, values])


def test_a_list_of_figures_is_needed() -> None:
    with pytest.raises(UserError, match=r"figures must be a list of figures, got \{\}"):
        figures_from_list({})


def test_a_figure_of_a_setting_that_the_sweep_lacks_is_refused() -> None:
    check_figures([Frontier(), LINES, Parallel()], ["noise", "levels", "cfg", "mask"])
    with pytest.raises(UserError, match="figures: lines: unknown setting 'levels'; the sweep has "
                                        "noise, cfg, mask"):  # fmt: skip
        check_figures([Frontier(), LINES], ["noise", "cfg", "mask"])


def test_figures_need_neither_torch_nor_pandas_nor_plotly() -> None:
    script = (
        "import sys, srdd.errors, srdd.validation; before = set(sys.modules);"
        "import srdd_platform.report.specs;"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.split() == ["srdd_platform"]

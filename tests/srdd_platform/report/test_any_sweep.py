"""The report of other sweeps: another family's settings, an axis of models, one setting alone."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srdd.errors import UserError
from srdd_platform.core.files import write_json
from srdd_platform.evaluation.rows import Row, write_row
from srdd_platform.evaluation.table import compile_table
from srdd_platform.report.data import SweepData, load_sweep
from srdd_platform.report.figures import draw_frontier, draw_lines, draw_parallel
from srdd_platform.report.frontier import CostAxis, cost_axes, frontier_info
from srdd_platform.report.lines import LinesInfo, lines_info
from srdd_platform.report.overview import overview
from srdd_platform.report.page import build_report
from srdd_platform.report.parallel import INACTIVE, parallel_info
from srdd_platform.report.specs import Figure, Frontier, Lines, Parallel, figure_to_dict

NFE = CostAxis(column="nfe", title="NFE")


def row(
    key: str, fid: float, settings: dict[str, Any], tags: dict[str, str] | None = None, **more: Any
) -> Row:
    """A row of 100 images; its GFLOPs follow its NFE."""
    values = {"kind": "trial", "name": "", "order": 0, "nfe": 4.0, **more}
    return Row(
        key=key, fid=fid, fid_se=0.1, settings=settings, tags=tags or {}, n=100, extractor="toy",
        reference="train n=50", gflops_per_image=values["nfe"] / 2, latency_ms=3.0, device="cpu",
        dtype="float32", **values,
    )  # fmt: skip


def written(directory: Path, rows: list[Row], figures: list[Figure], **settings: Any) -> SweepData:
    """A sweep directory as a sweep writes it, read again."""
    directory.mkdir()
    for one in rows:
        write_row(directory, one)
    runtime = {"figures": [figure_to_dict(figure) for figure in figures]}
    write_json(directory / "config.json", {"settings": settings, "runtime": runtime})
    compile_table(directory)
    return load_sweep(directory)


def keys(rows: list[dict[str, Any]]) -> list[str]:
    return [one["key"] for one in rows]


def lines_of(sweep: SweepData) -> LinesInfo:
    figure = next(figure for figure in sweep.setup.figures if isinstance(figure, Lines))
    return lines_info(sweep.rows, figure, sweep.setup)


def headings(directory: Path) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", build_report(directory).read_text())


def floats(low: float, high: float, *, log: bool = False) -> dict[str, Any]:
    """An axis as Optuna writes its distribution."""
    attributes = {"low": low, "high": high, "log": log, "step": None}
    return {"name": "FloatDistribution", "attributes": attributes}


@pytest.fixture
def palette(tmp_path: Path) -> SweepData:
    """A sweep of a family that has two settings: how much noise is added, over how many levels."""
    points = [(noise, levels) for levels in (2, 8) for noise in (0.1, 0.2, 0.3)]
    rows = [
        row(f"l{levels}n{noise}", 10 * noise + 8 / levels, {"noise": noise, "levels": levels},
            nfe=float(levels), accuracy=1 - noise, order=i)
        for i, (noise, levels) in enumerate(points)
    ]  # fmt: skip
    rows += [
        row("free", 2.5, {"noise": 0.17, "levels": 2}, order=6, accuracy=0.99),
        row("ref", 9.0, {"noise": 0.5, "levels": 8}, kind="reference", name="plain palette",
            accuracy=0.2),
    ]  # fmt: skip
    return written(
        tmp_path / "palette",
        rows,
        [
            Frontier(),
            Frontier(metric="accuracy", cost="nfe"),
            Lines(x="noise", series="levels"),
            Parallel(metric="accuracy", cost="nfe"),
        ],
        space={"noise": floats(0, 1), "levels": {"attributes": {"low": 1, "high": 9, "log": True}}},
        base={"noise": 0.0, "levels": 1},
        first=[{"noise": noise, "levels": levels} for noise, levels in points],
        objectives=["accuracy", "nfe"],
        best_rule="highest accuracy",
    )


def test_another_family_has_its_own_settings_on_the_axes(palette: SweepData) -> None:
    info = lines_of(palette)
    assert {levels: keys(line) for levels, line in info.lines.items()} == {
        2: ["l2n0.1", "l2n0.2", "l2n0.3"],
        8: ["l8n0.1", "l8n0.2", "l8n0.3"],
    }
    assert keys(info.others) == ["free"]
    assert (info.levels, info.notes, info.log) == ([], [], False)
    assert info.title == "FID against noise"
    figure = draw_lines(info)
    assert [trace.name for trace in figure.data] == ["off the grid", "levels 2", "levels 8"]
    assert (figure.layout.xaxis.type, figure.layout.xaxis.title.text) == ("linear", "noise")
    shown = parallel_info(palette.rows, Parallel(), palette.setup)
    assert [axis.name for axis in shown.axes] == ["noise", "levels", "gflops_per_image", "fid"]
    assert shown.axes[0].positions[:3] == pytest.approx([0.0, 0.5, 1.0])
    assert set(shown.axes[1].positions) == {0.0, 1.0}


def test_high_values_of_some_metrics_are_better(palette: SweepData) -> None:
    info = frontier_info(palette.rows, NFE, palette.setup, "accuracy")
    assert keys(info.frontier) == ["l2n0.1", "free"]
    figure = draw_frontier(info)
    assert figure.layout.yaxis.title.text == "accuracy (toy)"
    assert figure.layout.annotations[0].text == "↓ below: plain palette 0.2"
    assert 0.6 < figure.layout.yaxis.range[0] < 0.7 < 0.99 < figure.layout.yaxis.range[1]
    setup = replace(palette.setup, hypervolume_reference={"nfe": 16, "accuracy": 0.5})
    # log2 of 16, 4 and 2: (4 - 1)(0.9 - 0.5) + (4 - 2)(0.99 - 0.9)
    volume = frontier_info(palette.rows, NFE, setup, "accuracy").hypervolume
    assert volume == pytest.approx(1.38)
    best = overview(palette).best
    assert best is not None
    assert best["key"] == "free"
    drawn = draw_parallel(parallel_info(palette.rows, Parallel(metric="accuracy"), palette.setup))
    assert drawn.data[-1].meta == "free"  # the best is drawn last, in blue
    assert drawn.data[-1].line.color == "rgb(47,134,193)"


def test_a_page_has_the_figures_that_its_sweep_lists(palette: SweepData, tmp_path: Path) -> None:
    assert headings(tmp_path / "palette")[:4] == [
        "Frontier: FID against cost",
        "Frontier: accuracy against NFE",
        "FID against noise",
        "All settings and accuracy",
    ]
    text = (tmp_path / "palette" / "report" / "index.html").read_text()
    names = re.findall(r'<div id="([^"]*)" class="plotly', text)
    assert names == ["frontier-0-0", "frontier-0-1", "frontier2-0-0", "lines-0", "parallel-0"]
    for part in (
        "Upper left is better.",
        "blue the highest accuracy, orange the lowest",
        "accuracy 0.99 (toy), noise 0.17; levels 2",
        "no reference nfe and accuracy: a sweep sets one where low values of all its objectives",
    ):
        assert part in text


@pytest.fixture
def masks(tmp_path: Path) -> SweepData:
    """A sweep over two models and one setting, which is inactive at refine 0."""
    rows = []
    for i, (mask, base) in enumerate([("block_causal", 6.0), ("markov", 5.0)]):
        tags = {"mask": mask}
        rows.append(row(f"{mask}0", base, {"refine": 0, "p": None}, tags, order=10 * i))
        rows += [
            row(f"{mask}{p}", base - 10 * p, {"refine": 2, "p": p}, tags, order=10 * i + j + 1,
                nfe=4.0 + 40 * p)
            for j, p in enumerate((0.01, 0.1))
        ]  # fmt: skip
    return written(
        tmp_path / "masks",
        rows,
        [Lines(x="p", series="mask", fixed={"refine": 2}), Frontier(), Parallel()],
        space={"refine": {"attributes": {"low": 0, "high": 2}}, "p": floats(0.01, 0.1, log=True)},
        base={"refine": 0, "p": 0.01},
        models={"mask": ["block_causal", "markov"]},
        hypervolume_reference={"gflops_per_image": 16, "fid": 10},
    )


def test_models_are_lines_colours_and_an_axis(masks: SweepData) -> None:
    info = lines_of(masks)
    assert info.title == "FID against p at refine 2"
    assert {mask: keys(line) for mask, line in info.lines.items()} == {
        "block_causal": ["block_causal0.01", "block_causal0.1"],
        "markov": ["markov0.01", "markov0.1"],
    }
    assert (info.others, info.levels, info.log) == ([], [], True)
    assert info.notes == []
    info = lines_info(masks.rows, Lines(x="p", series="refine", fixed={"mask": "markov"}),
                      masks.setup)  # fmt: skip
    assert keys(info.levels) == ["markov0"]  # p is inactive at refine 0
    assert [trace.name for trace in draw_lines(info).data] == ["refine 0", "refine 2"]
    plain = {**masks.rows[0], "key": "r", "kind": "reference", "name": "plain", "mask": "markov"}
    rows = [*(one for one in masks.rows if one["refine"]), plain]
    at_markov = Lines(x="p", series="refine", fixed={"mask": "markov"})
    assert keys(lines_info(rows, at_markov, masks.setup).levels) == ["r"]
    rows[-1] = {**plain, "n": 50}  # measured otherwise
    info = lines_info(rows, at_markov, masks.setup)
    assert (info.levels, info.notes) == ([], ["No row without p was measured at mask markov."])
    frontier = frontier_info(masks.rows, cost_axes(masks.rows)[0], masks.setup)
    assert {name: len(rows) for name, rows in frontier.models.items()} == {
        "mask block_causal": 3,
        "mask markov": 3,
    }
    assert keys(frontier.frontier) == ["markov0", "markov0.01", "markov0.1"]
    drawn = {trace.name: trace for trace in draw_frontier(frontier).data}
    assert list(drawn) == ["mask block_causal", "mask markov", "not dominated"]
    assert list(drawn["mask markov"].customdata) == ["markov0", "markov0.01", "markov0.1"]
    looks = [(drawn[name].marker.color, drawn[name].marker.symbol) for name in drawn]
    assert len({colour for colour, _ in looks}) == len({symbol for _, symbol in looks}) == 3
    axes = {a.name: a for a in parallel_info(masks.rows, Parallel(), masks.setup).axes}
    assert axes["mask"].ticks == [(0.0, "block_causal"), (1.0, "markov")]
    assert axes["p"].positions == [INACTIVE, 0.0, 1.0] * 2


def test_a_setting_that_tells_models_apart_can_be_the_axis_below(masks: SweepData) -> None:
    info = lines_info(masks.rows, Lines(x="mask", series="p", fixed={"refine": 2}), masks.setup)
    assert {p: keys(line) for p, line in info.lines.items()} == {
        0.01: ["block_causal0.01", "markov0.01"],
        0.1: ["block_causal0.1", "markov0.1"],
    }
    axis = draw_lines(info).layout.xaxis
    assert (axis.type, list(axis.categoryarray)) == ("category", ["block_causal", "markov"])


def cfg_rows(*weights: float) -> list[Row]:
    """Trials of one setting; the ramp of the guidance is inactive without guidance."""
    return [
        row(f"c{cfg:g}", (cfg - 1) ** 2 + 2, {"cfg": cfg, "ramp": "linear" if cfg else None},
            {"mask": "markov"}, order=i, nfe=8.0 if cfg else 4.0)
        for i, cfg in enumerate(weights)
    ]  # fmt: skip


def test_one_setting_alone_makes_one_line(tmp_path: Path) -> None:
    sweep = written(
        tmp_path / "cfg",
        cfg_rows(2.0, 0.0, 0.5, 1.0),
        [Lines(x="cfg"), Frontier()],
        space={"cfg": floats(0, 3)},
        base={"cfg": 0.0, "ramp": "linear"},
        first=[{"cfg": 0.0}, {"cfg": 0.5}, {"cfg": 3.0}],
    )
    info = lines_of(sweep)
    assert {name: keys(line) for name, line in info.lines.items()} == {None: ["c0", "c0.5"]}
    assert keys(info.others) == ["c2", "c1"]
    assert info.notes == ["1 of the grid's 3 settings have no FID here."]
    without_first = lines_info(sweep.rows, Lines(x="cfg"), written(
        tmp_path / "again", [], [], space={"cfg": floats(0, 3)}, base={"cfg": 0.0, "ramp": "linear"}
    ).setup)  # fmt: skip
    assert keys(without_first.lines[None]) == ["c0", "c0.5", "c1", "c2"]
    assert [trace.name for trace in draw_lines(without_first).data] == ["trials"]
    assert headings(tmp_path / "cfg")[:2] == ["FID against cfg", "Frontier: FID against cost"]


def test_a_point_where_the_series_is_inactive_is_on_each_line(tmp_path: Path) -> None:
    """Without guidance its ramp says nothing: all ramps begin at the same row."""
    rows = [
        row(f"{ramp}{cfg}", cfg, {"cfg": cfg, "ramp": ramp}, order=i)
        for i, (cfg, ramp) in enumerate(
            [(0.0, None), (1.0, "linear"), (2.0, "linear"), (1.0, "window"), (2.0, "window")]
        )
    ]
    first = [{"cfg": cfg, "ramp": ramp} for cfg in (0.0, 1.0, 2.0) for ramp in ("linear", "window")]
    figures = [Lines(x="cfg", series="ramp")]
    info = lines_of(written(tmp_path / "sweep", rows, figures, first=first))
    assert {ramp: keys(line) for ramp, line in info.lines.items()} == {
        "linear": ["None0.0", "linear1.0", "linear2.0"],
        "window": ["None0.0", "window1.0", "window2.0"],
    }
    assert (info.others, info.notes) == ([], [])


@pytest.mark.parametrize(
    ("costs", "ticks"),
    [
        ((0.07, 0.45), {"tick0": -1, "tickformat": ".2~g"}),  # 0.1, 0.2, 0.4
        ((2.0, 4.0), {"tickvals": (2.0, 2.5, 3.0, 3.5, 4.0)}),
        ((2.0, 2.0), {"tickvals": (2.0,), "ticktext": ("2",)}),
        ((1.0, 100.0), {"dtick": None, "tickvals": None}),  # Plotly's own
    ],
)
def test_an_axis_of_costs_has_ticks_that_can_be_read(
    tmp_path: Path, costs: tuple[float, ...], ticks: dict[str, Any]
) -> None:
    rows = [row(f"r{i}", 1.0 - i, {}, nfe=2 * cost) for i, cost in enumerate(costs)]
    sweep = written(tmp_path / "sweep", rows, [])
    figure = draw_frontier(frontier_info(sweep.rows, cost_axes(sweep.rows)[0], sweep.setup))
    assert {name: figure.layout.xaxis[name] for name in ticks} == ticks


def test_what_a_sweep_does_not_vary_has_the_value_of_its_trials(tmp_path: Path) -> None:
    """An unconditional model has no guidance: a figure at cfg 0.5 is drawn at cfg 0."""
    rows = [
        row(f"p{p:g}", p, {"cfg": 0.0, "p": p}, {"mask": "markov"}, order=i)
        for i, p in enumerate((0.01, 0.1))
    ]
    sweep = written(
        tmp_path / "sweep",
        rows,
        [Lines(x="p", fixed={"cfg": 0.5})],
        space={"p": floats(0.01, 0.1, log=True)},
        base={"cfg": 0.0, "p": 0.01},
        first=[{"p": 0.01}, {"p": 0.1}],
    )
    info = lines_of(sweep)
    assert info.title == "FID against p at cfg 0"
    assert keys(info.lines[None]) == ["p0.01", "p0.1"]


def test_a_null_that_is_a_value_is_not_called_inactive(tmp_path: Path) -> None:
    """patch_nums of None visits all scales: it differs from "1,2", and is not inactive."""
    rows = [
        row("all", 2.0, {"patch_nums": None, "cfg": 1.0}),
        row("few", 3.0, {"patch_nums": "1,2", "cfg": 1.0}, order=1),
        row("all2", 1.0, {"patch_nums": None, "cfg": 2.0}, order=2),
    ]
    base = {"patch_nums": None, "cfg": 0.0}
    sweep = written(tmp_path / "sweep", rows, [Lines(x="cfg")], base=base)
    info = lines_of(sweep)
    assert keys(info.lines[None]) == ["all", "all2"]
    assert keys(info.others) == ["few"]
    fixed = Lines(x="cfg", fixed={"patch_nums": [1, 2]})
    assert keys(lines_info(sweep.rows, fixed, sweep.setup).lines[None]) == ["few"]
    assert overview(sweep).searched["patch_nums"] == "1,2 or default"
    axis = parallel_info(sweep.rows, Parallel(), sweep.setup).axes[0]
    assert axis.ticks == [(INACTIVE, "default"), (0.5, "1,2")]


def test_rows_of_two_protocols_share_no_figure_of_a_list(masks: SweepData, tmp_path: Path) -> None:
    directory = tmp_path / "masks"
    write_row(directory, Row(key="z", kind="trial", name="", order=9, fid=0.1, n=50,
                             tags={"mask": "markov"}, extractor="toy", nfe=1.0,
                             settings={"refine": 2, "p": 0.05}))  # fmt: skip
    compile_table(directory)
    with pytest.raises(UserError, match="measured alike"):
        lines_of(load_sweep(directory))
    text = build_report(directory).read_text()
    assert text.count("<summary>Also measured") == 1
    drawn = re.findall(r'<div id="(lines-\d)"', text)
    assert drawn == ["lines-0", "lines-1"]


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({}, r"figures in config\.json must be a list of figures"),
        ([{"kind": "pie"}], r"figures in config\.json: a figure's kind must be one of"),
        ([{"kind": "lines", "x": "p", "metric": "nfe"}], r"lines: metric must be one of fid"),
    ],
)
def test_a_damaged_list_is_refused_by_name(tmp_path: Path, figures: Any, message: str) -> None:
    written(tmp_path / "sweep", cfg_rows(0.0, 1.0), [])
    write_json(tmp_path / "sweep" / "config.json", {"runtime": {"figures": figures}})
    with pytest.raises(UserError, match=message):
        build_report(tmp_path / "sweep")


def test_a_figure_of_a_column_that_no_row_has_says_so(tmp_path: Path) -> None:
    figures = [Lines(x="eta", fixed={"gamma": 2}), Frontier(cost="peak_memory_mb"), Frontier()]
    written(tmp_path / "sweep", cfg_rows(0.0, 1.0), figures, space={"cfg": floats(0, 3)})
    text = build_report(tmp_path / "sweep").read_text()
    assert "FID against eta at gamma 2" in text
    assert "No finished trial at gamma 2 has eta: no figure." in text
    assert "No finished trial has peak memory (MB): no frontier." in text
    assert 'id="lines-0"' not in text

"""The report: facts by value, refusals, what the page says, and the page in a browser."""

import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from var_rows import var_row

from srdd import SamplerConfig
from srdd.errors import UserError
from srdd_platform.core.files import write_json
from srdd_platform.evaluation.rows import Row, write_row
from srdd_platform.evaluation.table import compile_table
from srdd_platform.report.data import Protocol, load_sweep, protocols
from srdd_platform.report.figures import draw_frontier, draw_lines, draw_parallel
from srdd_platform.report.frontier import CostAxis, cost_axes, frontier_info
from srdd_platform.report.hypervolume import hypervolume
from srdd_platform.report.lines import lines_info
from srdd_platform.report.overview import overview
from srdd_platform.report.page import build_report
from srdd_platform.report.parallel import INACTIVE, parallel_info
from srdd_platform.report.setup import read_setup
from srdd_platform.report.specs import Lines, Parallel
from srdd_platform.report.wording import number, plus_minus

EXTRACTOR = "classifier-digits-1a2b3c"
GFLOPS = CostAxis(column="gflops_per_image", title="GFLOPs per image")
GRID = {"cfg": 2.0, "feedback": "updated", "thresholds": [0.001, 0.01], "refine_steps": [1, 5]}
CONFIG: dict[str, Any] = {
    "grid": GRID,
    "hypervolume_reference": {"gflops_per_image": 16.0, "fid": 20.0},
    "best_rule": "lowest FID <over all>",
}
SETUP = read_setup(CONFIG)
LINES = Lines(
    x="resample_threshold", series="refine_steps", fixed={"cfg": 2.0, "feedback": "updated"}
)


def row(key: str, fid: float | None, gflops: float | None, **values: Any) -> Row:
    defaults: dict[str, Any] = {
        "mask": "markov",
        "cfg": 2.0,
        "refine_steps": 0,
        "n": 100,
        "seed": 0,
        "extractor": EXTRACTOR,
        "reference": "train n=1437",
        "fid_se": 0.5,
        "nfe": 4.0,
        "latency_ms": None if gflops is None else 10 * gflops,
        "device": "cpu",
        "dtype": "float32",
    }
    return var_row(key, **{**defaults, "fid": fid, "gflops_per_image": gflops, **values})


def refined(key: str, fid: float, gflops: float, steps: int, threshold: float, **more: Any) -> Row:
    settings = {"resample": "masked", "feedback": "updated", **more}
    return row(key, fid, gflops, refine_steps=steps, resample_threshold=threshold, **settings)


def reference(key: str, name: str, fid: float, gflops: float | None = None, **more: Any) -> Row:
    return row(key, fid, gflops, **{"kind": "reference", "name": name, **more})


ROWS = [
    row("plain", 12.0, 1.0, order=0),
    refined("a1", 10.0, 2.0, 1, 0.001, order=1),
    refined("a2", 9.0, 2.0, 1, 0.01, order=2),
    refined("b1", 8.0, 8.0, 5, 0.001, order=3),
    refined("b2", 6.0, 8.0, 5, 0.01, order=4),
    refined("off", 11.0, 4.0, 5, 0.05, order=5),
    refined("kept", 13.0, 4.0, 5, 0.01, order=6, feedback="kept"),
    row("bad", None, None, order=7, status="failed", error="<script>alert(1)</script> & more"),
    reference("real", "real held-out", 1.0, order=0, n=36, refine_steps=None, cfg=None),
    reference("var", "VAR", 7.0, 3.0, order=1, mask="block_causal"),
    reference("untrained", "untrained", 300.0, 1.0, order=2),
]


def sweep(directory: Path, rows: list[Row], config: dict[str, Any] = CONFIG) -> Path:
    (directory / "rows").mkdir(parents=True)
    for one in rows:
        write_row(directory, one)
    write_json(directory / "config.json", config)
    compile_table(directory, SamplerConfig)
    return directory


def grids(directory: Path, *keys: str) -> None:
    (directory / "grids").mkdir()
    for key in keys:
        Image.new("RGB", (24, 16), "teal").save(directory / "grids" / f"{key}.png")


def records(tmp_path: Path, rows: list[Row]) -> list[dict[str, Any]]:
    return load_sweep(sweep(tmp_path / "sweep", rows)).rows


def keys(rows: list[dict[str, Any]]) -> list[str]:
    return [one["key"] for one in rows]


def test_hypervolume_by_hand() -> None:
    # log2 costs 0, 2, 3 below the limit 4: (4-0)(20-12) + (4-2)(12-9) + (4-3)(9-6) = 41
    points = [(8.0, 6.0), (1.0, 12.0), (4.0, 9.0), (4.0, 11.0)]
    assert hypervolume(points, (16.0, 20.0)) == 41.0
    beyond = [(32.0, 1.0), (16.0, 1.0), (1.0, 20.0), (2.0, math.nan), (0.0, 1.0)]
    assert hypervolume(beyond, (16.0, 20.0)) == 0.0
    assert hypervolume([*points, *beyond], (16.0, 20.0)) == 41.0
    assert hypervolume([(2.0, -3.0)], (16.0, 20.0)) == 69.0  # a debiased FID may be negative


@given(
    st.lists(st.tuples(st.floats(0.1, 40), st.floats(-2, 30)), max_size=12),
    st.tuples(st.floats(0.1, 40), st.floats(-2, 30)),
)
def test_hypervolume_never_falls(
    points: list[tuple[float, float]], added: tuple[float, float]
) -> None:
    more = hypervolume([*points, added], (16.0, 20.0))
    assert more >= hypervolume(points, (16.0, 20.0)) - 1e-9
    assert more == pytest.approx(hypervolume([added, *reversed(points)], (16.0, 20.0)))


def test_frontier_and_what_stands_beside_it(tmp_path: Path) -> None:
    info = frontier_info(records(tmp_path, ROWS), GFLOPS, SETUP)
    assert keys(info.frontier) == ["plain", "a2", "b2"]
    assert keys(info.trials) == ["plain", "a2", "a1", "off", "kept", "b2", "b1"]
    assert keys(info.references) == ["var", "untrained"]
    assert keys(info.lines) == ["real"]
    # (4-0)(20-12) + (4-1)(12-9) + (4-3)(9-6)
    assert info.hypervolume == 44.0
    assert info.notes == [
        "real held-out is measured on n=36, the trials on n=100: FID reads higher on fewer images."
    ]
    figure = draw_frontier(info)
    drawn = {trace.name: trace for trace in figure.data}
    assert list(drawn["not dominated"].x) == [1.0, 2.0, 8.0]
    assert list(drawn["not dominated"].y) == [12.0, 9.0, 6.0]
    assert list(drawn["not dominated"].error_y.array) == [0.5, 0.5, 0.5]
    assert set(drawn["real held-out (n=36)"].y) == {1.0}
    assert set(drawn["trials"].customdata) == {"a1", "b1", "off", "kept"}
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.yaxis.title.text == f"FID ({EXTRACTOR})"
    # the untrained model does not press the trials together, and is named
    assert figure.layout.yaxis.range[1] < 20
    assert figure.layout.annotations[0].text == "↑ above: untrained 300"
    for part in ("FID (classifier-digits-1a2b3c): 9.00 ± 0.50", "resample_threshold: 0.01", "NFE"):
        assert part in drawn["not dominated"].hovertext[1]


def test_fids_decades_apart_get_a_log_axis(tmp_path: Path) -> None:
    rows = records(tmp_path, [row("x", 100.0, 1.0), row("y", 1.0, 2.0, order=1)])
    axis = draw_frontier(frontier_info(rows, GFLOPS, SETUP)).layout.yaxis
    assert axis.type == "log"
    assert axis.title.text == f"FID ({EXTRACTOR}), log scale"
    assert axis.range[0] < 0.0 < 2.0 < axis.range[1]  # in powers of ten


def test_no_hypervolume_without_a_reference_point(tmp_path: Path) -> None:
    rows = records(tmp_path, ROWS)
    assert frontier_info(rows, GFLOPS, read_setup({})).hypervolume is None
    with pytest.raises(UserError, match="hypervolume_reference"):
        frontier_info(
            rows, GFLOPS, read_setup({"hypervolume_reference": {"gflops_per_image": -1, "fid": 2}})
        )
    with pytest.raises(UserError, match="hypervolume_reference"):
        frontier_info(rows, GFLOPS, read_setup({"hypervolume_reference": {"gflops_per_image": 1}}))


@pytest.mark.parametrize("other", [{"extractor": "inception"}, {"n": 50}, {"reference": "test"}])
def test_rows_measured_differently_share_no_frontier(tmp_path: Path, other: dict[str, Any]) -> None:
    rows = records(tmp_path, [*ROWS, row("other", 3.0, 1.5, order=9, **other)])
    with pytest.raises(UserError, match="one extractor, number of images and reference"):
        frontier_info(rows, GFLOPS, SETUP)
    with pytest.raises(UserError, match="measured alike"):
        parallel_info(rows, Parallel(), SETUP)
    with pytest.raises(UserError, match="measured alike"):
        lines_info(rows, LINES, SETUP)
    page = build_report(tmp_path / "sweep").read_text()  # split instead
    assert page.count("<summary>Also measured") == 1
    assert {"frontier-0-0", "frontier-1-0"} <= set(re.findall(r'id="(frontier-\d-\d)"', page))


def test_measured_costs_need_one_device_and_dtype(tmp_path: Path) -> None:
    rows = records(tmp_path, [*ROWS, row("gpu", 3.0, 1.5, order=9, device="H200")])
    with pytest.raises(UserError, match="one device and dtype"):
        frontier_info(rows, CostAxis(column="latency_ms", title="latency"), SETUP)
    assert keys(frontier_info(rows, GFLOPS, SETUP).frontier) == [
        "plain",
        "gpu",
    ]  # counted, not measured
    axes = cost_axes(rows)
    assert [axis.fingerprint for axis in axes] == [None, "H200, float32", "cpu, float32"]
    page = build_report(tmp_path / "sweep").read_text()
    assert page.count("<option") == 3


def test_main_protocol_is_the_one_with_most_images(tmp_path: Path) -> None:
    rows = records(tmp_path, [*ROWS, row("small", 0.1, 1.0, order=9, n=50)])
    assert protocols(rows) == [
        Protocol(EXTRACTOR, 100, "train n=1437"),
        Protocol(EXTRACTOR, 50, "train n=1437"),
    ]
    best = overview(load_sweep(tmp_path / "sweep")).best
    assert best is not None
    assert best["key"] == "b2"


def test_threshold_lines(tmp_path: Path) -> None:
    other_top_k = refined("topk", 5.0, 2.0, 1, 0.01, order=8, top_k=900)
    info = lines_info(records(tmp_path, [*ROWS, other_top_k]), LINES, SETUP)
    assert {steps: keys(line) for steps, line in info.lines.items()} == {
        1: ["a1", "a2"],
        5: ["b1", "b2"],
    }
    assert keys(info.others) == ["off", "topk"]  # the same cfg and feedback, not the grid's lines
    assert keys(info.levels) == ["plain"]
    assert info.title == "FID against threshold at cfg 2, feedback updated"
    assert info.notes == []
    drawn = {trace.name: trace for trace in draw_lines(info).data}
    assert list(drawn["refine_steps 5"].x) == [0.001, 0.01]
    assert list(drawn["refine_steps 5"].y) == [8.0, 6.0]
    assert list(drawn["refine_steps 5"].error_y.array) == [0.5, 0.5]
    assert set(drawn["no refinement (plain)"].y) == {12.0}


def test_plain_may_be_a_reference_and_gaps_are_said(tmp_path: Path) -> None:
    rows = [one for one in ROWS if one.key not in ("plain", "b1")]
    plain = reference("ref", "plain SDD", 12.5, 1.0, order=3)
    info = lines_info(records(tmp_path, [*rows, plain]), LINES, SETUP)
    assert keys(info.levels) == ["ref"]  # not the untrained row, alike in all settings
    assert info.notes == ["1 of the grid's 4 settings have no FID here."]


def test_parallel_axes_show_inactive_settings(tmp_path: Path) -> None:
    info = parallel_info(records(tmp_path, ROWS), Parallel(), SETUP)
    axes = {axis.name: axis for axis in info.axes}
    assert list(axes) == [
        "refine_steps",
        "resample",
        "resample_threshold",
        "feedback",
        "gflops_per_image",
        "fid",
    ]
    assert keys(info.rows)[:4] == ["plain", "a1", "a2", "b1"]
    at = axes["resample_threshold"].positions
    assert at[0] == INACTIVE
    assert at[1] == 0.0
    assert at[2] == pytest.approx(math.log(10) / math.log(50))
    assert axes["resample_threshold"].ticks[0] == (INACTIVE, "inactive")
    assert [text for _, text in axes["resample_threshold"].ticks[1:]] == ["0.001", "0.01", "0.05"]
    assert axes["feedback"].ticks == [(INACTIVE, "inactive"), (0.0, "kept"), (1.0, "updated")]
    assert axes["refine_steps"].positions[:4] == [0.0, 0.2, 0.2, 1.0]
    assert len(draw_parallel(info).data) == len(info.rows)


def test_numbers_are_written_to_what_is_known() -> None:
    assert plus_minus(0.085312, 0.00213) == "0.0853 ± 0.0021"
    assert plus_minus(123.4, 12.3) == "123 ± 12"
    assert plus_minus(123.456, None) == "123.5"
    assert [number(v) for v in (None, 0.0001, 5, 12345.6, "masked")] == [
        "",
        "0.0001",
        "5",
        "12,346",
        "masked",
    ]


class Page(HTMLParser):
    """What a page loads, which tags it has and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] not in ("script", "style"):
            self.text += data


def test_page_says_what_it_must(tmp_path: Path) -> None:
    directory = sweep(tmp_path / "sweep", ROWS)
    grids(directory, "b2")
    path = build_report(directory)
    text = path.read_text()
    page = Page(text)
    assert path == directory / "report" / "index.html"
    assert page.loads == ["data:,", "plotly.min.js"]
    assert (path.parent / "plotly.min.js").stat().st_size > 1_000_000
    assert "@import" not in text
    assert "url(" not in text
    for part in (
        "8 trials of the sampler: 7 finished, 1 failed.",
        f"features of {EXTRACTOR}; it cannot be compared with published Inception FIDs",
        "resample_threshold (0.001, 0.01, 0.05 or inactive)",
        "lowest FID <over all>",
        "up to the reference (16, 20): 44.",
        "6 finished trial(s) have no sample grid.",
        "/best",
    ):
        assert part in page.text
    assert "srdd serve" in text
    assert text.count("<script>alert") == 0  # an error line stays text
    assert "<script>alert(1)</script> & more" in page.text
    assert '"grid": "../grids/b2.png"' in text


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    directory = sweep(tmp_path / "sweep", ROWS)
    first = build_report(directory).read_bytes()
    shutil.rmtree(directory / "report")
    assert build_report(directory).read_bytes() == first
    names = sorted(path.name for path in (directory / "report").iterdir())
    assert names == ["index.html", "plotly.min.js"]


def test_inception_needs_no_banner(tmp_path: Path) -> None:
    one = row("only", 5.0, 1.0, extractor="inception-2015-12-05")
    text = build_report(sweep(tmp_path / "sweep", [one], {})).read_text()
    assert "cannot be compared" not in text
    for part in ("One finished trial", "no reference rows", "sets no reference"):
        assert part in text


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("x", None, None, status="failed", error="out of memory")],
        [row("x", None, 1.0), reference("r", "real held-out", 1.0)],
        [row("x", 2.0, None, latency_ms=None, device=None, dtype=None)],
        [row("x", 0.0, 1.0, fid_se=None), row("y", -0.5, 2.0, order=1)],
        [row("x", math.nan, 1.0), row("y", 3.0, 1.0, order=1), row("z", 3.0, 1.0, order=2)],
        [refined("x", 3.0, 1.0, 1, 0.0), refined("y", 3.0, 1.0, 1, 0.01, order=1, cfg=None)],
    ],
    ids=["empty", "failed", "null", "no cost", "no error", "equal", "zero threshold"],
)
def test_page_renders_whatever_is_missing(tmp_path: Path, rows: list[Row]) -> None:
    text = build_report(sweep(tmp_path / "sweep", rows)).read_text()
    assert "<h2>Failed</h2>" in text
    assert not re.search(r"\b(NaN|None|inf)\b", Page(text).text.replace("None.", ""))


def test_foreign_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trials\.parquet and config\.json missing"):
        build_report(tmp_path / "nowhere")
    directory = sweep(tmp_path / "sweep", ROWS)
    (directory / "trials.parquet").write_bytes(b"not a table")
    with pytest.raises(UserError, match=r"trials\.parquet is damaged") as damaged:
        build_report(directory)
    assert "\n" not in str(damaged.value)
    compile_table(directory, SamplerConfig).drop(columns=["fid"]).to_parquet(
        directory / "trials.parquet"
    )
    with pytest.raises(UserError, match="lacks the columns fid"):
        build_report(directory)
    table = compile_table(directory, SamplerConfig)
    table.assign(fid="low").to_parquet(directory / "trials.parquet")
    with pytest.raises(UserError, match=r"trials\.parquet is damaged"):
        build_report(directory)
    (directory / "trials.parquet").unlink()
    (directory / "trials.parquet").symlink_to("/proc/self/mem")  # reading it fails as a disk does
    with pytest.raises(OSError, match="Input/output error"):
        build_report(directory)
    (directory / "trials.parquet").unlink()
    compile_table(directory, SamplerConfig)
    (directory / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        build_report(directory)
    write_json(directory / "config.json", {"grid": {"cfg": 2.0}})
    with pytest.raises(UserError, match="grid in config"):
        build_report(directory)


@pytest.mark.browser
def test_a_click_shows_the_samples_of_that_row(tmp_path: Path, chromium: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    directory = sweep(tmp_path / "sweep", ROWS)
    grids(directory, *(one.key for one in ROWS if one.status == "ok" and one.kind == "trial"))
    url = build_report(directory).as_uri()
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    problems: list[str] = []
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.on("console", lambda m: m.type == "error" and problems.append(m.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)

        def shown() -> str:
            page.wait_for_function("document.getElementById('panel-grid').naturalWidth > 0")
            assert page.evaluate("document.getElementById('panel-grid').naturalWidth") == 24
            image = page.locator("#panel-grid")
            assert image.is_visible()
            source = image.get_attribute("src")
            assert isinstance(source, str)
            return source

        assert shown() == "../grids/b2.png"  # the best is shown first
        width = "document.querySelector('#panel-facts dt').clientWidth"
        assert page.evaluate(width) > 120  # long values leave names their room

        # a real click on the point of trial a1
        page.wait_for_selector("#frontier-0-0 .scatterlayer .points path")
        left, top = page.evaluate(
            """() => {
                const plot = document.getElementById("frontier-0-0");
                const {xaxis: x, yaxis: y} = plot._fullLayout;
                const box = plot.getBoundingClientRect();
                const trace = plot.data.find((t) => t.name === "trials");
                const i = trace.customdata.indexOf("a1");
                return [
                    box.left + x._offset + x.d2p(trace.x[i]),
                    box.top + y._offset + y.d2p(trace.y[i]) + window.scrollY,
                ];
            }"""
        )
        page.evaluate("(y) => window.scrollTo(0, y - 400)", top)
        left_top = page.evaluate("(y) => y - window.scrollY", top)
        page.mouse.move(left, left_top)
        page.mouse.click(left, left_top)
        page.wait_for_function("document.getElementById('panel').dataset.key === 'a1'")
        assert shown() == "../grids/a1.png"
        assert page.locator("#trial-table tr.chosen").get_attribute("data-key") == "a1"

        # the keyboard does the same, and headers sort
        page.locator("#trial-table thead button", has_text="FID").focus()
        page.keyboard.press("Enter")
        first = page.locator("#trial-table tbody tr")
        assert [first.nth(i).get_attribute("data-key") for i in (0, 1, 7)] == ["b2", "b1", "bad"]
        first.nth(1).locator("button").focus()
        page.keyboard.press("Enter")
        assert shown() == "../grids/b1.png"
        assert "8.00 ± 0.50" in page.locator("#panel-facts").inner_text()

        # no grid: the panel says so and asks for no file
        page.locator("#failed-table tbody button").click()
        assert page.locator("#panel-grid").is_hidden()
        assert "No sample grid" in page.locator("#panel-empty").inner_text()
        assert "<script>alert(1)</script>" in page.locator("#panel-facts").inner_text()

        # the other cost axis fills the page's width once chosen
        page.locator("select.view").select_option(index=1)
        assert page.locator("#frontier-0-1").is_visible()
        width = "document.querySelector('#frontier-0-1 .main-svg').clientWidth"
        assert page.evaluate("document.querySelector('main').clientWidth") > 850
        page.wait_for_function(f"{width} > 850")

        # a phone shows the whole page without scrolling sideways
        page.set_viewport_size({"width": 375, "height": 700})
        page.wait_for_function("document.documentElement.scrollWidth <= 375")
        browser.close()
    assert problems == []
    assert all(one.startswith(("file:", "data:", "blob:")) for one in asked)

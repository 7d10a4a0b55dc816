"""``srdd sample``: a grid or single images, a function of model, settings and seed alone."""

import csv
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from srdd import Pipeline, SamplerConfig, image_seed, load_pipeline, sample
from srdd.images import grid, to_uint8
from srdd.var.accelerate import compile_blocks, int8_linears
from srdd.var.pipeline import save_pipeline
from srdd_platform.cli import main as cli
from srdd_platform.core.images import to_png

REFINING = "--cfg 1.5 --refine-steps 2 --resample-threshold 0.1 --feedback kept".split()
REFINED = SamplerConfig(cfg=1.5, refine_steps=2, resample_threshold=0.1, feedback="kept")


Command = Callable[..., str]


@pytest.fixture
def srdd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the console script in this process; returns what it printed."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["srdd", *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    return run


def expected(pipeline: Path, labels: list[int], config: SamplerConfig, seed: int) -> torch.Tensor:
    """The images that the library draws, one at a time."""
    loaded = load_pipeline(pipeline)
    parts = [
        sample(loaded, torch.tensor([label]), config, [image_seed(seed, i)]).images
        for i, label in enumerate(labels)
    ]
    return to_uint8(torch.cat(parts))


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "samples.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_grid_holds_the_library_s_images(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "grid.png"
    said = srdd(
        "sample", "--model", tiny_pipeline, "--classes", "3,five", "--num", 7, "--seed", 4,
        "--out", out, *REFINING,
    )  # fmt: skip
    images = expected(tiny_pipeline, [3, 5, 3, 5, 3, 5, 3], REFINED, seed=4)
    assert out.read_bytes() == to_png(grid(images))
    assert "7 images" in said
    assert [path.name for path in out.parent.iterdir()] == ["grid.png"]
    with Image.open(out) as image:
        assert image.size == (3 * (3 * 18 + 2), 3 * (3 * 18 + 2))  # 3 by 3, enlarged 3 times


def test_a_directory_holds_images_and_their_table(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    out = tmp_path / "samples"
    srdd(
        "sample", "--model", tiny_pipeline, "--classes", "nine,0", "--num", 5, "--seed", 7,
        "--out", out,
    )  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{i:06d}.png" for i in range(5)), "samples.csv",
    ]  # fmt: skip
    rows = table(out)
    assert list(rows[0]) == ["file", "label", "class", "seed"]
    assert [row["file"] for row in rows] == [f"{i:06d}.png" for i in range(5)]
    assert [row["label"] for row in rows] == ["9", "0", "9", "0", "9"]
    assert [row["class"] for row in rows] == ["nine", "zero", "nine", "zero", "nine"]
    assert [int(row["seed"]) for row in rows] == [image_seed(7, i) for i in range(5)]
    assert int(rows[0]["seed"]) == 7
    images = expected(tiny_pipeline, [9, 0, 9, 0, 9], SamplerConfig(), seed=7)
    for i, image in enumerate(images):
        assert (out / f"{i:06d}.png").read_bytes() == to_png(image)


def test_an_image_can_be_drawn_again_alone(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    srdd("sample", "--model", tiny_pipeline, "--num", 6, "--out", tmp_path / "all")
    row = table(tmp_path / "all")[4]
    srdd(
        "sample", "--model", tiny_pipeline, "--num", 1, "--classes", row["class"],
        "--seed", row["seed"], "--out", tmp_path / "one",
    )  # fmt: skip
    again = (tmp_path / "one" / "000000.png").read_bytes()
    assert again == (tmp_path / "all" / "000004.png").read_bytes()


def test_without_classes_all_take_turns(srdd: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    srdd("sample", "--model", tiny_pipeline, "--num", 12, "--out", tmp_path / "out")
    labels = [int(row["label"]) for row in table(tmp_path / "out")]
    assert labels == [*range(10), 0, 1]


@pytest.mark.parametrize("mask", ["markov", "block_causal"])
def test_the_bytes_do_not_depend_on_the_batch(
    srdd: Command, tiny_pipelines: dict[str, Path], tmp_path: Path, mask: str
) -> None:
    common = ["sample", "--model", tiny_pipelines[mask], "--num", 7, "--seed", 1, *REFINING]
    grids = {}
    for size in (1, 3, 7, 64):
        out = tmp_path / f"{size}.png"
        srdd(*common, "--batch-size", size, "--out", out)
        grids[size] = out.read_bytes()
    assert len(set(grids.values())) == 1
    srdd(*common[: -len(REFINING)], "--seed", 2, "--out", tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != grids[1]


def test_the_pipeline_s_own_settings_hold_where_none_is_given(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    pipeline = load_pipeline(tiny_pipeline)
    tuned = tmp_path / "run" / "model"
    save_pipeline(replace(pipeline, sampler=REFINED), tuned)
    (tmp_path / "run" / "config.json").write_text("{}")
    srdd("sample", "--model", tmp_path / "run", "--num", 4, "--out", tmp_path / "tuned.png")
    images = expected(tiny_pipeline, [0, 1, 2, 3], REFINED, seed=0)
    assert (tmp_path / "tuned.png").read_bytes() == to_png(grid(images))
    srdd(
        "sample", "--model", tuned, "--num", 4, "--out", tmp_path / "plain.png",
        "--refine-steps", 0,
    )  # fmt: skip
    images = expected(tiny_pipeline, [0, 1, 2, 3], replace(REFINED, refine_steps=0), seed=0)
    assert (tmp_path / "plain.png").read_bytes() == to_png(grid(images))


def test_every_setting_reaches_the_sampler(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    srdd(
        "sample", "--model", tiny_pipeline, "--num", 3, "--out", tmp_path / "g.png",
        "--cfg", 2, "--cfg-ramp", "constant", "--top-k", 9, "--top-p", 0.8, "--epsilon", 0.01,
        "--refine-steps", 1, "--resample", "simple", "--feedback", "none",
        "--patch-nums", "1,2,4",
    )  # fmt: skip
    config = SamplerConfig(
        cfg=2, cfg_ramp="constant", top_k=9, top_p=0.8, epsilon=0.01, refine_steps=1,
        resample="simple", feedback="none", patch_nums=(1, 2, 4),
    )  # fmt: skip
    images = expected(tiny_pipeline, [0, 1, 2], config, seed=0)
    assert (tmp_path / "g.png").read_bytes() == to_png(grid(images))


def test_samples_replace_earlier_samples(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    out = tmp_path / "samples"
    srdd("sample", "--model", tiny_pipeline, "--num", 5, "--out", out)
    srdd("sample", "--model", tiny_pipeline, "--num", 2, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "000000.png", "000001.png", "samples.csv",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_an_empty_directory_is_filled(srdd: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    srdd("sample", "--model", tiny_pipeline, "--num", 1, "--out", tmp_path / "out")
    assert len(table(tmp_path / "out")) == 1


def test_reduced_precision_is_the_transformer_s(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half.png"
    srdd("sample", "--model", tiny_pipeline, "--num", 4, "--out", out, "--dtype", "bfloat16")
    half = load_pipeline(tiny_pipeline).to("cpu", torch.bfloat16)
    result = sample(half, torch.arange(4), None, [image_seed(0, i) for i in range(4)])
    assert result.images.dtype == torch.float32
    assert out.read_bytes() == to_png(grid(to_uint8(result.images)))


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="no 8-bit dot product here")
def test_int8_draws_with_int8_linears(srdd: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.png"
    srdd("sample", "--model", tiny_pipeline, "--num", 4, "--out", out, "--int8", "--cfg", 1)
    pipeline = int8_linears(load_pipeline(tiny_pipeline))
    seeds = [image_seed(0, i) for i in range(4)]
    result = sample(pipeline, torch.arange(4), SamplerConfig(cfg=1), seeds)
    assert out.read_bytes() == to_png(grid(to_uint8(result.images)))


def test_the_warm_up_is_told(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = partial(compile_blocks, backend="aot_eager")  # without minutes of code generation
    monkeypatch.setattr("srdd.var.accelerate.compile_blocks", slow)
    out = tmp_path / "compiled.png"
    said = srdd("sample", "--model", tiny_pipeline, "--num", 4, "--out", out, "--compile")
    assert re.search(r"^Warm-up: \d+\.\d s$", said, re.MULTILINE)
    assert out.read_bytes() == to_png(
        grid(expected(tiny_pipeline, [0, 1, 2, 3], SamplerConfig(), 0))
    )


def test_a_graph_without_a_gpu_is_one_line(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "graph.png"
    with pytest.raises(SystemExit) as exit_code:
        srdd("sample", "--model", tiny_pipeline, "--num", 4, "--out", out, "--cuda-graph")
    assert exit_code.value.code == 2
    assert capsys.readouterr().err == (
        "srdd: --cuda-graph needs a CUDA device, this is cpu: leave it out\n"
    )
    assert not out.exists()


def test_the_pipeline_s_class_names_may_be_numbers(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """A name wins over an index, as in the digits' own data."""
    loaded = load_pipeline(tiny_pipeline)
    names = tuple(str(9 - i) for i in range(10))
    save_pipeline(Pipeline(loaded.tokenizer, loaded.transformer, SamplerConfig(), names),
                  tmp_path / "model")  # fmt: skip
    srdd(
        "sample", "--model", tmp_path / "model", "--classes", "9", "--num", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert [(row["label"], row["class"]) for row in table(tmp_path / "out")] == [("0", "9")]


def test_class_names_of_every_kind_are_drawn_and_told(
    srdd: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """Commas, a name that is other names with a comma, quotes, a number, a name not in UTF-8."""
    loaded = load_pipeline(tiny_pipeline)
    names = ("lamp", "desk", "lamp, desk", 'the "big" one', "7", "caf\udce9", *"abcd")
    save_pipeline(Pipeline(loaded.tokenizer, loaded.transformer, SamplerConfig(), names),
                  tmp_path / "model")  # fmt: skip
    for number, (asked, labels) in enumerate(
        {
            "lamp, desk": [2, 2, 2],
            "desk,lamp": [1, 0, 1],
            '"lamp, desk",index:5,the "big" one': [2, 5, 3],
            "7": [4, 4, 4],
        }.items()
    ):
        out = tmp_path / str(number)
        srdd(
            "sample", "--model", tmp_path / "model", "--classes", asked, "--num", 3, "--out", out,
        )  # fmt: skip
        told = [names[label].replace("\udce9", r"\xe9") for label in labels]
        assert [(int(row["label"]), row["class"]) for row in table(out)] == list(
            zip(labels, told, strict=True)
        )


def test_a_path_is_not_markup(srdd: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    out = tmp_path / "cfg[bold]3.png"
    assert str(out) in srdd("sample", "--model", tiny_pipeline, "--num", 1, "--out", out)

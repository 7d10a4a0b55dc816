"""The training from one file of arrays: packed, trained, stopped, resumed, refused."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks import command, pack_images, train_cifar10
from benchmarks.stages import batches, load_arrays
from srdd import load_pipeline
from srdd.errors import UserError
from srdd.train.config import OptimConfig

SETTINGS = (
    "--classifier-steps 2 --tokenizer-steps 4 --steps 4 --batch-size 4 --depth 1 --ema 0.5 "
    "--precision float32 --samples 8 --flip --log-every 1 --checkpoint-every 2 --device cpu "
    "--peak-tflops 0.5"
).split()
RATES = ("images_per_s", "tflops", "mfu", "samples_per_s")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise around a grey of their own, 8 images to train on and 4 held out."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for level, name in ((60, "dark"), (190, "light")):
            directory = root / "tree" / split / name
            directory.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(level, level + 60, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(directory / f"{i}.png")
    assert pack_images.main([str(root / "tree"), str(root / "images.npz")]) == 0
    return root / "images.npz"


@pytest.fixture(scope="module")
def whole(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("run") / "whole"
    assert train_cifar10.main([str(arrays), "--out", str(out), *SETTINGS]) == 0
    return out


def _results(out: Path) -> dict[str, Any]:
    stages = json.loads((out / "report.json").read_text())["stages"]
    return {
        stage: {name: value for name, value in result.items() if name not in RATES}
        for stage, result in stages.items()
    }


def test_a_tree_becomes_arrays(arrays: Path, tmp_path: Path) -> None:
    found = load_arrays(arrays)
    assert found.classes == ("dark", "light")
    assert found.images.shape == (8, 3, 32, 32)
    assert found.labels.tolist() == [0] * 4 + [1] * 4
    assert found.held_out_labels.tolist() == [0, 0, 1, 1]
    path = arrays.parent / "tree" / "test" / "light" / "1.png"
    pixels = np.array(Image.open(path)).transpose(2, 0, 1)
    assert np.array_equal(found.held_out[3].numpy(), pixels)
    tensors = {n: getattr(found, n) for n in ("images", "labels", "held_out", "held_out_labels")}
    save_file(tensors, tmp_path / "same.safetensors")
    assert load_arrays(tmp_path / "same.safetensors").digest == found.digest
    few = load_arrays(arrays, limit=2)
    assert few.labels.tolist() == few.held_out_labels.tolist() == [0, 1]
    assert (
        pack_images.main([str(arrays.parent / "tree"), str(tmp_path / "few.npz"), "--limit", "1"])
        == 0
    )
    one = load_arrays(tmp_path / "few.npz")
    assert one.labels.tolist() == one.held_out_labels.tolist() == [0, 1]
    assert torch.equal(one.images, found.images[[0, 4]])
    (arrays.parent / "tree" / "test" / "third").mkdir()
    assert pack_images.main([str(arrays.parent / "tree"), str(tmp_path / "no.npz")]) == 2
    assert not (tmp_path / "no.npz").exists()
    (arrays.parent / "tree" / "test" / "third").rmdir()


def test_an_epoch_has_every_image_once_in_an_order_of_its_own() -> None:
    optim, labels = OptimConfig(steps=9, batch_size=3), torch.arange(9) % 2
    seen: list[tuple[list[int], list[bool]]] = []

    def take(index_b: torch.Tensor, flipped_b: torch.Tensor) -> torch.Tensor:
        seen.append((index_b.tolist(), flipped_b.tolist()))
        return index_b

    def first(step: int, count: int, **settings: Any) -> list[list[int]]:
        stream: Iterator[Any] = batches(take, labels, optim, **settings)(step)
        drawn = [next(stream) for _ in range(count)]
        assert all(torch.equal(batch.labels_b, labels[batch.index_b]) for batch in drawn)
        return [batch.index_b.tolist() for batch in drawn]

    steps = first(0, 6, flip=True)
    for epoch in (steps[:3], steps[3:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(9))
    assert steps[:3] != steps[3:]
    assert first(4, 2, flip=True) == steps[4:]
    assert seen[4:6] == seen[6:8]
    assert 4 < sum(sum(flipped) for _, flipped in seen[:6]) < 14
    seen.clear()
    first(0, 3, flip=False)
    assert not any(any(flipped) for _, flipped in seen)
    with pytest.raises(UserError, match="fewer than a batch"):
        next(batches(take, labels[:2], optim, flip=False)(0))


def test_every_stage_is_judged(whole: Path) -> None:
    results = _results(whole)
    assert list(results) == ["classifier", "tokenizer", "markov", "block_causal"]
    tokenizer = results["tokenizer"]
    assert tokenizer["n"] == 4
    assert 5 < tokenizer["psnr"] < 30
    assert tokenizer["rfid"] > 0
    assert 0 < tokenizer["ssim"] < 1
    assert (tokenizer["perplexity_1x1"], tokenizer["usage_1x1"] * 512) <= (4, 4)
    codes = load_file(whole / "tokenizer" / "codes.safetensors")
    assert codes["train"].shape == (2, 8, 130)
    assert codes["held_out"].shape == (4, 130)
    counts = torch.bincount(codes["train"].long().flatten()).double()
    share = counts[counts > 0] / counts.sum()
    entropy = -float((share * share.log()).sum())
    for mask in ("markov", "block_causal"):
        found = results[mask]
        assert found["entropy"] == pytest.approx(entropy)
        assert found["nll"] == pytest.approx(math.log(512), abs=0.3)
        for end in ("", "_1x1", "_8x8"):
            assert found[f"margin{end}"] == found[f"entropy{end}"] - found[f"nll{end}"]
        sides = (1, 2, 3, 4, 6, 8)
        summed = sum(found[f"nll_{side}x{side}"] * side * side for side in sides) / 130
        assert found["nll"] == pytest.approx(summed)
        assert found["fid"] > found["fid_held_out"] > 0
        pipeline = load_pipeline(whole / mask / "model")
        assert pipeline.transformer.config.mask == mask
        assert (pipeline.class_names, pipeline.sampler.cfg) == (("dark", "light"), 1.0)
        assert Image.open(whole / mask / "grid.png").size == ((10 * 34 + 2) * 2, (4 * 34 + 2) * 2)
    assert results["markov"]["nll_8x8"] != results["block_causal"]["nll_8x8"]
    curve = json.loads((whole / "markov" / "curve.json").read_text())
    assert [row["step"] for row in curve] == [1, 2, 3, 4]
    speed = json.loads((whole / "report.json").read_text())["stages"]["tokenizer"]
    assert speed["mfu"] == speed["tflops"] / 0.5
    assert speed["tflops"] == pytest.approx(speed["images_per_s"] * 1.3e-3, rel=0.02)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    arrays: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the tokenizer and in a transformer, each between two checkpoints."""
    said, out = command.say, tmp_path / "stopped"

    def stop_at(moment: str) -> None:
        def say(line: str) -> None:
            if line.startswith(moment):
                raise KeyboardInterrupt
            said(line)

        monkeypatch.setattr(command, "say", say)

    arguments = [str(arrays), "--out", str(out), *SETTINGS]
    for moment in ("tokenizer 3/4", "block_causal 4/4"):
        stop_at(moment)
        with pytest.raises(KeyboardInterrupt):
            train_cifar10.main(arguments)
    monkeypatch.setattr(command, "say", said)
    assert train_cifar10.main(arguments) == 0
    assert _results(out) == _results(whole)
    for part in ("tokenizer/model", "markov/model/transformer", "block_causal/model/transformer"):
        one, other = (load_file(run / part / "model.safetensors") for run in (out, whole))
        assert all(torch.equal(one[name], other[name]) for name in other)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("state.pt")}
    assert train_cifar10.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("state.pt")} == before


def test_what_does_not_fit_is_refused_in_one_line(
    arrays: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert train_cifar10.main(list(map(str, arguments))) == 2
        text = capsys.readouterr().err.splitlines()[-1]
        assert text.startswith("train_cifar10: ")
        return text

    other = refused(arrays, "--out", whole, *SETTINGS, "--seed", 1)
    assert "holds a run with other settings (optim)" in other
    assert "none.npz is not a file" in refused(tmp_path / "none.npz", "--out", tmp_path / "a")
    for name in ("cut.npz", "cut.safetensors"):
        (tmp_path / name).write_bytes(arrays.read_bytes()[:999])
        assert f"{name} is damaged, or not" in refused(tmp_path / name, "--out", tmp_path / "a")
    np.savez(tmp_path / "half.npz", images=np.zeros((2, 3, 32, 32), np.uint8))
    assert "lacks labels, held_out" in refused(tmp_path / "half.npz", "--out", tmp_path / "a")
    digits = refused(arrays, "--out", tmp_path / "b", *SETTINGS, "--preset", "digits")
    assert "the preset takes 16 px images" in digits
    assert not (tmp_path / "a").exists()

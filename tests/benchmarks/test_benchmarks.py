import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import srdd
from benchmarks import (
    memory,
    official,
    parity,
    plain_var,
    roofline,
    sampling,
    tables,
    train_step,
    weights,
)
from benchmarks.measure import Spread, Timing, ratios
from benchmarks.sizes import SIZES
from srdd import Pipeline, SamplerConfig
from srdd.var.masks import Mask

ROOT = Path(__file__).resolve().parents[2]
TINY, CPU = SIZES["tiny"], torch.device("cpu")
MASKS: list[Mask] = ["block_causal", "markov"]
LABELS = torch.tensor([0, 7, 3])


@pytest.fixture(scope="module")
def pipelines() -> dict[Mask, Pipeline]:
    causal = weights.random_pipeline(TINY, CPU)
    return {"block_causal": causal, "markov": weights.with_mask(causal, TINY, "markov")}


@pytest.fixture(scope="module")
def var_repo() -> Path:
    """A checkout of FoundationVision/VAR, where there is one."""
    path = os.environ.get("SRDD_VAR_REPO")
    if not path:
        pytest.skip("no checkout of FoundationVision/VAR (SRDD_VAR_REPO names it)")
    return Path(path)


@pytest.fixture
def no_repo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRDD_VAR_REPO", raising=False)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cfg", [0.0, 4.0])
def test_the_plain_loop_draws_our_greedy_codes(
    pipelines: dict[Mask, Pipeline], mask: Mask, cfg: float
) -> None:
    drawn = plain_var.draw(plain_var.plain(pipelines[mask]), LABELS, cfg, 1, 0.0).greedy
    result = srdd.sample(pipelines[mask], LABELS, SamplerConfig(cfg=cfg, top_k=1), [0, 1, 2])
    assert torch.equal(drawn.codes_BL, result.codes_BL)
    assert len(drawn.codes_BL.unique()) > 5
    torch.testing.assert_close(drawn.images, result.images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mask", MASKS)
def test_the_plain_forward_gives_our_logits_and_latents(
    pipelines: dict[Mask, Pipeline], mask: Mask
) -> None:
    pipeline, plain = pipelines[mask], plain_var.plain(pipelines[mask])
    images = weights.random_images(TINY, 3, CPU)
    with torch.no_grad():
        latent = plain_var.latent(plain, images)
        torch.testing.assert_close(pipeline.tokenizer.latent(images), latent, atol=1e-4, rtol=0)
        codes_BL = pipeline.tokenizer.encode(images)
        fed = pipeline.transformer.quantizer.teacher_input(codes_BL)
        logits = plain_var.teacher_logits(plain, LABELS, fed, mask)
        found = pipeline.transformer(LABELS, codes_BL)
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=0)


def test_the_weights_tell_the_masks_apart(pipelines: dict[Mask, Pipeline]) -> None:
    codes_BL = pipelines["markov"].tokenizer.encode(weights.random_images(TINY, 3, CPU))
    with torch.no_grad():
        a, b = (pipelines[mask].transformer(LABELS, codes_BL) for mask in MASKS)
    assert parity.gap(a, b) > 1000 * parity.BOUND


def test_sampling_runs_and_renders_its_report_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_repo: None
) -> None:
    out = tmp_path / "report.json"
    arms = ["plain", "causal", "markov", "pruned-3", "srdd-1", "epsilon", "official"]
    command = ["--size", "tiny", "--repeats", "2", "--batch", "2", "--device", "cpu"]
    assert sampling.main([*command, "--decode", "yes", "--out", str(out), "--arms", *arms]) == 0
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert sampling.main(["--markdown", str(out)]) == 0
    assert capsys.readouterr().out == printed
    rows = {(row["arm"], row["batch"]): row for row in report["rows"]}
    assert len(rows) == 6
    assert rows["plain:fp32", 2]["speedup"] == [1, 1, 1]
    assert rows["markov:fp32", 2]["nfe"] == 2 * len(TINY.patch_nums) - 1  # the first is unguided
    assert rows["pruned-3:fp32", 2]["nfe"] == 5
    assert rows["plain:fp32", 2]["memory"]["cache"] == 8 * 4 * 30 * 128 * 2  # two rows an image
    assert rows["markov:fp32", 2]["memory"]["cache"] == 0
    assert [row["share"] for row in report["greedy"]] == [1, 1]
    assert report["skipped"][0]["arm"] == "official:fp32"
    assert "SRDD_VAR_REPO" in report["skipped"][0]["reason"]


def test_a_training_step_has_the_plain_loss_and_gradients(tmp_path: Path, no_repo: None) -> None:
    out = tmp_path / "report.json"
    command = ["--size", "tiny", "--repeats", "2", "--device", "cpu", "--optimizer"]
    assert train_step.main([*command, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [check["mask"] for check in report["parity"]] == MASKS
    assert [row["arm"] for row in report["rows"]] == ["plain", "plain-codes", "causal", "markov"]


def test_a_training_step_under_another_mask_fails(pipelines: dict[Mask, Pipeline]) -> None:
    codes_BL = pipelines["markov"].tokenizer.encode(weights.random_images(TINY, 3, CPU))
    data = train_step.Data(torch.zeros(0), LABELS, codes_BL.to(torch.uint16))
    causal = train_step.plain_step(pipelines["markov"], data, "block_causal", from_pixels=False)
    own = weights.with_mask(pipelines["markov"], TINY, "markov")
    check = train_step.compare("markov", "plain", causal, train_step.our_step(own, data))
    assert not check["ok"]
    assert check["gradient_relative"] > 0.01


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size", "huge"], "invalid choice: 'huge'"),
        (["--batch", "0"], "0 is not positive"),
        (["--arms", "fast"], "no arm 'fast'"),
        (["--arms", "official+int8"], "no arm 'official+int8'"),
        (["--arms", "markov:fp8"], "must be one of fp32, bf16, fp16"),
        (["--arms", "pruned-9"], "size tiny has no pruned-9, but pruned-3"),
        (["--arms", "markov", "markov:fp32"], "an arm is named twice"),
        (["--var-repo", "missing"], "missing is no checkout of FoundationVision/VAR"),
        (["--markdown", "missing"], "missing cannot be read: No such file"),
    ],
)
def test_wrong_input_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], no_repo: None
) -> None:
    try:
        status = sampling.main(["--size", "tiny", "--device", "cpu", *argv])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_parity_needs_a_checkout(capsys: pytest.CaptureFixture[str], no_repo: None) -> None:
    assert parity.main(["--size", "tiny", "--device", "cpu"]) == 2
    assert "needs a checkout" in capsys.readouterr().err


def test_parity_with_the_official_code(var_repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = ["--size", "tiny", "--device", "cpu", "--var-repo", str(var_repo)]
    assert parity.main([*command, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert len(report["checks"]) == 4 + 2 + 2 * 3 * 2
    assert "holds" in tables.markdown(report)


def test_the_official_code_leaves_the_process_as_it_was(
    var_repo: Path, pipelines: dict[Mask, Pipeline]
) -> None:
    before = (list(sys.path), set(sys.modules), torch.nn.Linear.reset_parameters)
    theirs = official.load(var_repo, TINY, pipelines["block_causal"])
    new = {name.split(".")[0] for name in set(sys.modules) - before[1]}
    assert not new & {"models", "dist", "utils"}
    assert (list(sys.path), torch.nn.Linear.reset_parameters) == (before[0], before[2])
    with official.cache_sizes(theirs) as sizes, official.without_decoder(theirs):
        f_hat = official.draw(theirs, LABELS, 1.5, 0, 0.0)
    assert f_hat.shape == (3, 32, 4, 4)
    assert sum(sizes) == 8 * 2 * 3 * 30 * 128 * 2  # float32 keys and values of both halves
    with official.masked(theirs, TINY, "markov"), official.cache_sizes(theirs) as sizes:
        official.draw(theirs, LABELS, 1.5, 0, 0.0)
    assert not sizes


def test_live_bytes_count_what_lives_at_once() -> None:
    x = torch.zeros(1000)

    def call() -> torch.Tensor:
        y = x + 1  # 4,000 bytes
        z = y.view(10, 100) * 2  # a view is free; 8,000
        del y  # 4,000
        return z.repeat(1, 10)  # 44,000

    assert memory.peak_bytes(call, CPU) == 44_000
    assert memory.peak_bytes(call, CPU) == 44_000


def test_ratios_are_paired() -> None:
    slow, fast = Timing([2.0, 6.0, 20.0], [1.0] * 3, 0.0), Timing([1.0, 2.0, 5.0], [1.0] * 3, 0.0)
    assert ratios(slow, fast) == Spread(3.0, 2.5, 3.5)


@pytest.mark.parametrize("mask", MASKS)
def test_the_floor_counts_the_operations_of_the_loop(
    pipelines: dict[Mask, Pipeline], mask: Mask
) -> None:
    batch = 8
    config = SamplerConfig(cfg=1.5)
    result = srdd.sample(pipelines[mask], torch.zeros(batch, dtype=torch.int64), config)
    work = list(roofline.sampling_work(TINY.transformer(mask), batch, 4, 1.5))
    work += roofline.decoder_work(TINY.tokenizer(), batch, 4)
    floor = roofline.floor(work, {(False, 4): 1e9, (True, 4): 1e9}, 1e12)
    assert floor.flops / 1e9 == pytest.approx(result.gflops.sum().item(), rel=0.02)
    assert floor.seconds == pytest.approx(floor.flops / 1e9)  # these ceilings bind by operations
    assert floor.traffic_s < floor.compute_s


def test_the_benchmarks_need_torch_and_numpy_alone() -> None:
    """Nor do they touch a device when they are imported: a forked process could not use it then."""
    foreign = "ray tyro rich pandas pytest sklearn PIL torchvision psutil huggingface_hub pyarrow"
    code = (
        "import sys, threading, torch\n"
        f"for name in {foreign.split()}: sys.modules[name] = None\n"
        "def touched(*_): raise SystemExit('CUDA was asked for')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda.current_device = touched\n"
        "torch.cuda.init = torch.cuda._lazy_init = touched\n"
        "import benchmarks.sampling, benchmarks.parity, benchmarks.train_step\n"
        "import benchmarks.train_cifar10, benchmarks.gpu_check\n"
        "print(threading.active_count())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "1\n"), run.stderr

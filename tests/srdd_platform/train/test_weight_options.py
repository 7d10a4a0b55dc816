"""Every option that takes weights, given what people have instead: one line, before any work."""

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from srdd import load_pipeline
from srdd.errors import UserError
from srdd.presets import digits
from srdd.train.var.perceptual import Lpips
from srdd_platform.cli import main as cli
from srdd_platform.core import ray_session
from srdd_platform.core.cluster import Cluster
from srdd_platform.core.runs import open_run
from srdd_platform.evaluation.extractors import import_torch_fidelity, load_extractor
from srdd_platform.sweep.definition import Float, Sweep
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.sweep.run import run_sweep
from srdd_platform.train.checkpoints import read_state, write_state
from srdd_platform.train.job import make_job
from srdd_platform.train.options import Options

State = dict[str, Tensor]
Refused = Callable[..., str]
INCEPTION = "takes torch-fidelity's Inception, weights-inception-2015-12-05-6726825d.pth"


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Refused:
    """Run a command that must end in one line, without Ray and without a trace on the disk."""

    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError("Ray was to be started")

    monkeypatch.setattr(ray_session, "session", no_ray)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["srdd", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        assert caught.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("srdd: ")
        assert printed.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err.removeprefix("srdd: ").rstrip("\n")

    return run


@pytest.fixture(scope="module")
def inception() -> State:
    """torch-fidelity's Inception with random weights, in half precision."""
    import_torch_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Random(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *_: Any, **__: Any) -> None:
            """Keep the first weights."""

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(0)
    net = Random("i", ["2048"], feature_extractor_weights_path=nothing)
    return {n: t.half() if t.is_floating_point() else t for n, t in net.state_dict().items()}


def torchvisions(inception: State) -> State:
    """What tells torchvision's file: 1000 classes, and an auxiliary head."""
    name = "Mixed_7c.branch1x1.conv.weight"
    head = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    auxiliary = {"AuxLogits.conv0.conv.weight": torch.zeros(128, 768, 1, 1)}
    return {name: inception[name], **head, **auxiliary}


@pytest.fixture(scope="module")
def vgg() -> State:
    """VGG16 by torchvision's names, without its classifier, in half precision."""
    convs = {n: t for n, t in Lpips().state_dict().items() if n.startswith("convs")}
    return {name.replace("convs", "features"): tensor.half() for name, tensor in convs.items()}


HEADS = {
    f"lin{k}.model.1.weight": torch.ones(1, n, 1, 1) for k, n in enumerate((64, 128, 256, 512, 512))
}
ALEX = {
    f"lin{k}.model.1.weight": torch.ones(1, n, 1, 1) for k, n in enumerate((64, 192, 384, 256, 256))
}


def train(data: Path, *options: object) -> tuple[object, ...]:
    return ("train", "tokenizer", "--preset", "digits", "--data", data, "--out", "run", *options)


NOT_WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty: fetch or copy it again"),
    "html": (b"<!doctype html><title>Sign in</title>", "is an HTML page: the address led to a"),
    "text": (b"Access denied\n", "is a text file, which begins with 'Access denied'"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "cut": (b"PK\x03\x04 and no more", "is a zip archive that is damaged or cut short"),
    "pickle": (b"\x80\x04\x95\x00", "is a Python pickle that torch.save did not write"),
}
OPTIONS: dict[str, tuple[str, tuple[object, ...]]] = {
    "inception": ("--extractor inception", ("--extractor", "inception", "--weights")),
    "lpips": ("--lpips", ("--lpips",)),
    "lpips heads": ("--lpips", ("--lpips", "good.pth", "--lpips-heads")),
}


@pytest.mark.parametrize("content", NOT_WEIGHTS)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_training_is_not_begun_with_what_is_no_weights(
    refused: Refused, digits_shards: Path, vgg: State, option: str, content: str
) -> None:
    takes, given = OPTIONS[option]
    Path("bad.pth").write_bytes(NOT_WEIGHTS[content][0])
    if "good.pth" in given:
        torch.save(vgg, "good.pth")
    found = refused(*train(digits_shards, *given, "bad.pth"))
    assert found.startswith(f"bad.pth {NOT_WEIGHTS[content][1]}")
    assert found.endswith("again") or f"{takes} takes" in found


@pytest.mark.parametrize("option", OPTIONS)
def test_a_directory_or_a_pipe_is_no_file_of_weights(
    refused: Refused, digits_shards: Path, vgg: State, tmp_path: Path, option: str
) -> None:
    takes, given = OPTIONS[option]
    os.mkfifo("pipe")
    torch.save(vgg, "good.pth")
    (tmp_path / "folder").mkdir()
    for name, said in (("pipe", "is a pipe or a device"), ("folder", "is a directory: name the")):
        found = refused(*train(digits_shards, *given, name))
        assert found.startswith(f"{name} {said}")
        assert f"{takes} takes" in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (torchvisions, f"w.pth is torchvision's Inception: --extractor inception {INCEPTION}"),
        (lambda s: {"state_dict": {f"module.{n}": t for n, t in torchvisions(s).items()}},
         "w.pth is torchvision's Inception: "),
        (lambda s: HEADS, "w.pth is LPIPS's heads for VGG16: "),
        (lambda s: {"weight": torch.ones(1)}, "w.pth has other keys (weight): "),
        (lambda s: {}, "w.pth has other keys (none): "),
        (lambda s: {n: t for n, t in s.items() if n != "Mixed_5b.branch_pool.bn.bias"},
         "w.pth: the keys do not fit: missing Mixed_5b.branch_pool.bn.bias; "),
        (lambda s: {**s, "fc.bias": torch.zeros(7)}, "w.pth: the shapes do not fit: fc.bias [7] "),
        (lambda s: {**s, "fc.bias": s["fc.bias"] * torch.nan},
         "w.pth: fc.bias holds values that are not finite"),
    ],
    ids=["torchvision", "wrapped", "heads", "other", "none", "missing", "shape", "nan"],
)  # fmt: skip
def test_another_inception_is_refused_by_name(
    refused: Refused, digits_shards: Path, inception: State, change: Callable[..., Any], said: str
) -> None:
    """pytorch-fid#34 and #16: torchvision's Inception is the file that people have."""
    torch.save(change(inception), "w.pth")
    found = refused(*train(digits_shards, "--extractor", "inception", "--weights", "w.pth"))
    assert found.startswith(said)


@pytest.mark.parametrize("form", ["wrapped", "without counts", "safetensors"])
def test_torch_fidelitys_inception_loads_in_every_form(
    inception: State, tmp_path: Path, form: str
) -> None:
    """Without and with BatchNorm's counts, which old files lack."""
    path = tmp_path / "weights.pth"
    counts = {name for name in inception if name.endswith("num_batches_tracked")}
    if form == "safetensors":
        save_file(inception, path)
    elif form == "wrapped":
        torch.save({"model": {f"module.{n}": t for n, t in inception.items()}, "epoch": 1}, path)
    else:
        torch.save({name: tensor for name, tensor in inception.items() if name not in counts}, path)
    net = load_extractor("inception", path)._net
    own = net.state_dict()
    assert all(torch.equal(own[name], t.to(own[name].dtype)) for name, t in inception.items())
    assert next(net.parameters()).dtype == torch.float32
    assert not net.training


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("vgg",), "a.pth is VGG16 alone: give LPIPS's heads with --lpips-heads FILE"),
        (("heads",), "a.pth holds LPIPS's heads alone: give them with --lpips-heads, and VGG16"),
        (("vgg", "alex"), "b.pth is LPIPS's heads for AlexNet: --lpips takes VGG16 with"),
        (("inception", "heads"), "a.pth is torchvision's Inception: --lpips takes VGG16"),
        (("vgg", "nan"), "b.pth: lin0.model.1.weight holds values that are not finite"),
        (("vgg", "integers"), "b.pth: lin0.model.1.weight is torch.int64"),
        (("cut", "heads"), "a.pth and b.pth: the keys do not fit: missing convs.28.bias; --lpips"),
    ],
)
def test_lpips_says_which_part_is_which(
    refused: Refused, digits_shards: Path, vgg: State, files: tuple[str, ...], said: str
) -> None:
    """The lpips package's weights/v0.1/vgg.pth are the heads alone."""
    shapes = {"Mixed_7c.branch1x1.conv.weight": torch.ones(1), "fc.weight": torch.ones(1000, 1)}
    contents: dict[str, State] = {
        "vgg": vgg, "heads": HEADS, "alex": ALEX, "inception": shapes,
        "nan": {**HEADS, "lin0.model.1.weight": torch.full((1, 64, 1, 1), torch.nan)},
        "integers": {**HEADS, "lin0.model.1.weight": torch.ones(1, 64, 1, 1).long()},
        "cut": {n: t for n, t in vgg.items() if n != "features.28.bias"},
    }  # fmt: skip
    options: list[object] = []
    for option, name, path in zip(
        ("--lpips", "--lpips-heads"), files, ("a.pth", "b.pth"), strict=False
    ):
        torch.save(contents[name], path)
        options += [option, path]
    assert refused(*train(digits_shards, *options)).startswith(said)


def test_a_file_is_no_classifier_and_a_directory_without_weights_none_either(
    refused: Refused, digits_shards: Path, classifier_dir: Path, tmp_path: Path
) -> None:
    torch.save({"weight": torch.ones(1)}, "w.pth")
    found = refused(*train(digits_shards, "--weights", "w.pth"))
    assert found.startswith("--weights w.pth is a file: a classifier is the run directory")
    shutil.copytree(classifier_dir, tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").unlink()
    found = refused(*train(digits_shards, "--weights", "c"))
    assert (
        found == "c/model.safetensors does not exist: the classifier is not finished, or not whole"
    )
    (tmp_path / "c" / "model.safetensors").write_bytes(b"<html>")
    assert "c/model.safetensors is an HTML page" in refused(*train(digits_shards, "--weights", "c"))


# -- --init-from -----------------------------------------------------------------------------------


@pytest.fixture
def begin(refused: Refused, digits_shards: Path, tiny_pipeline: Path) -> Refused:
    """Begin a transformer of the digits preset on the tiny tokenizer with given weights."""

    def run(source: object) -> str:
        return refused(
            "train", "transformer", "--preset", "digits", "--data", digits_shards, "--out", "run",
            "--tokenizer", tiny_pipeline, "--init-from", source,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", ["var", "vqvae", "html", "unknown", "empty"])
def test_a_file_is_nothing_to_begin_with(
    begin: Refused, tiny_official: dict[str, State], name: str
) -> None:
    contents = {"html": b"<html>", "empty": b""}
    states = {**tiny_official, "unknown": {"a": torch.ones(1)}}
    if name in contents:
        Path("d16.pth").write_bytes(contents[name])
    else:
        torch.save(states[name], "d16.pth")
    network = {"var": "VAR's transformer", "vqvae": "VAR's tokenizer"}.get(
        name, "a file of weights"
    )
    said = {
        "html": "d16.pth is an HTML page",
        "empty": "d16.pth is empty",
    }.get(
        name, f"--init-from d16.pth: this is {network}, not a pipeline or run directory; srdd con"
    )
    assert begin("d16.pth").startswith(said)


def test_weights_to_begin_with_are_checked_before_ray(
    begin: Refused, tiny_pipeline: Path, tmp_path: Path
) -> None:
    """Those of another width, of another tokenizer, cut, and of another configuration."""
    assert begin(tmp_path) == (
        f"--init-from {tmp_path}: neither a pipeline nor a finished transformer run"
    )
    found = begin(tiny_pipeline)
    assert found.startswith(f"--init-from {tiny_pipeline}: cannot begin from a model of another wi")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_pipeline, copy)
    pipeline = load_pipeline(copy)
    weights = copy / "transformer" / "model.safetensors"
    state = {n: t.clone() for n, t in pipeline.transformer.state_dict().items()}
    state["quantizer.codebook.weight"][0, 0] += 1
    save_file(state, weights)
    assert "copy: cannot begin from a model of another tokenizer: quantizer.codebook" in begin(copy)
    save_file({n: t for n, t in state.items() if n != "head.bias"}, weights)
    assert "the keys do not fit: missing head.bias" in begin(copy)
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors is a safetensors file that is damaged or cut short" in begin(copy)


# -- convert ---------------------------------------------------------------------------------------


def convert(*options: object) -> tuple[object, ...]:
    return ("convert", "--patch-nums", "1,2,3,4,6", "--out", "out", *options)


WRAPS: dict[str, Callable[[State], Any]] = {
    "DataParallel": lambda s: {f"module.{n}": t for n, t in s.items()},
    "torch.compile": lambda s: {f"_orig_mod.{n}": t for n, t in s.items()},
    "compiled and parallel": lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()},
    "Lightning": lambda s: {"state_dict": {f"model.{n}": t for n, t in s.items()}, "epoch": 3},
    "averages": lambda s: {"model": {n: t + 1 for n, t in s.items()}, "ema": s},
    "trainer": lambda s: {"trainer": {"model": s, "optimizer": {"state": {}}}},
    "bfloat16": lambda s: {n: t.bfloat16() for n, t in s.items()},
    "double": lambda s: {n: t.double() for n, t in s.items()},
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_convert_finds_the_weights_in_every_wrapping(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    tiny_official: dict[str, State], wrap: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save(WRAPS[wrap](tiny_official["vqvae"]), "vae.pth")
    torch.save(WRAPS[wrap](tiny_official["var"]), "var.pth")
    options = convert("--vae", "vae.pth", "--transformer", "var.pth")
    monkeypatch.setattr(sys, "argv", ["srdd", *map(str, options)])
    cli.main()
    printed = capsys.readouterr().out
    place = {"Lightning": ", state_dict", "averages": ", ema", "trainer": ", trainer.model"}
    assert f"var.pth{place.get(wrap, '')}: 34 tensors mapped" in printed
    found = load_pipeline("out").transformer
    expected = tiny_official["var"]["head.weight"]
    expected = expected.bfloat16().float() if wrap == "bfloat16" else expected
    assert torch.equal(found.head.weight, expected)


@pytest.mark.parametrize("option", ["--vae", "--transformer"])
def test_convert_says_what_a_file_is(
    refused: Refused, tiny_official: dict[str, State], vgg: State, tiny_pipeline: Path, option: str
) -> None:
    """VAR's two files swapped, our own, VGG16, a web page."""
    torch.save(tiny_official["vqvae"], "vae.pth")
    torch.save(tiny_official["var"], "var.pth")
    torch.save(vgg, "vgg16-397923af.pth")
    Path("page.pth").write_text("<html>")
    part = {"--vae": "tokenizer", "--transformer": "transformer"}[option]
    other = {"tokenizer": "transformer", "transformer": "tokenizer"}[part]
    good = {"--vae": "vae.pth", "--transformer": "var.pth"}

    def run(path: object) -> str:
        given = {**good, option: path}
        return refused(*convert(*(word for pair in given.items() for word in pair)))

    swapped = {"--vae": "var.pth", "--transformer": "vae.pth"}[option]
    assert run(swapped) == f"{swapped}: this is the {other}: are the two files swapped?"
    assert f"vgg16-397923af.pth: this is VGG16: a {part} of VAR" in run("vgg16-397923af.pth")
    own = tiny_pipeline / part / "model.safetensors"
    assert f"{own}: this is a {part} of srdd: a {part} of VAR" in run(own)
    assert f"page.pth is an HTML page: the address led to a page, not to the file; {option}" in run(
        "page.pth"
    )


# -- checkpoints -----------------------------------------------------------------------------------


def test_a_checkpoint_without_its_manifest_is_named(tmp_path: Path) -> None:
    write_state(tmp_path, {"step": 3, "module": {"a": torch.ones(2)}}, "its settings", 1)
    read = read_state(tmp_path, "its settings")
    assert torch.equal(read["module"]["a"], torch.ones(2))
    for text in ("[]", "{}", '"a"'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"is no checkpoint: manifest\.json does not say whose"):
            read_state(tmp_path, "its settings")


def test_a_run_of_other_settings_is_refused_before_ray(
    refused: Refused, digits_shards: Path
) -> None:
    job = make_job("classifier", digits(), digits_shards, Path("run"), Options(max_steps=5))
    with open_run(Path("run"), "train classifier", *job.config):
        pass
    shared = ("--data", digits_shards, "--out", "run")
    found = refused("train", "classifier", *shared, "--max-steps", 6)
    assert found.startswith("run holds a run with other settings (optim.steps: 5 -> 6): give")
    found = refused("train", "tokenizer", *shared)
    assert found == "run holds a run of `train classifier`, not of `train tokenizer`"


# -- features that a machine may lack --------------------------------------------------------------


@pytest.mark.parametrize("part", ["sample", "transformer", "distill"])
def test_compiling_without_a_compiler_is_refused_before_any_work(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, digits_shards: Path, tiny_pipeline: Path,
    tmp_path: Path, part: str,
) -> None:  # fmt: skip
    """pytorch#116696, #92745: no g++ in a slim container."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    shared = ("--preset", "digits", "--data", digits_shards, "--out", "run", "--compile")
    command = {
        "sample": ("sample", "--model", "not looked at", "--out", "grid.png", "--compile"),
        "transformer": ("train", "transformer", *shared, "--tokenizer", tiny_pipeline),
        "distill": ("train", "distill", *shared, "--model", tiny_pipeline, "--stages", "1,3,4"),
    }[part]
    assert refused(*command).startswith("--compile needs a C++ compiler (g++): install it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_training_on_a_gpu_that_is_not_there_is_refused_before_ray(
    refused: Refused, digits_shards: Path
) -> None:
    found = refused(*train(digits_shards, "--device", "cuda"))
    assert found.startswith("--device cuda: torch finds no CUDA device here")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_serving_on_a_gpu_that_is_not_there_is_refused_before_ray(
    refused: Refused, tiny_pipeline: Path
) -> None:
    found = refused("serve", tiny_pipeline, "--device", "cuda")
    assert found.startswith("--device cuda: torch finds no CUDA device here")


@pytest.mark.parametrize(
    ("extractor", "said"),
    [
        ("inception", "w.pth is torchvision's Inception: --extractor inception takes"),
        ("classifier", "--weights w.pth is a file: a classifier is the run directory"),
    ],
)
def test_a_sweep_looks_at_the_extractors_weights_before_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_shards: Path, tiny_pipeline: Path,
    inception: State, extractor: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save(torchvisions(inception), "w.pth")
    args = SweepArgs(
        model=tiny_pipeline, data=digits_shards, extractor=extractor, weights=Path("w.pth")
    )
    sweep = Sweep(name="sweep", space={"cfg": Float(0, 1)})
    with pytest.raises(UserError) as caught:
        run_sweep(sweep, args)
    assert str(caught.value).startswith(said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_sweep_on_a_gpu_that_is_not_there_starts_no_ray() -> None:
    with pytest.raises(UserError, match=r"^--device cuda:1: torch finds no CUDA device here"):
        Cluster(None, "cuda:1").connect()

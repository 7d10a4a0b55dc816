"""``srdd convert`` and ``srdd export`` on files, as the command line runs them."""

import argparse
import errno
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srdd import Pipeline, SamplerConfig, load_pipeline, sample
from srdd.var.pipeline import save_pipeline
from srdd.var.prune import prune_pipeline
from srdd_platform.cli import main as cli
from srdd_platform.core import official_files

State = dict[str, Tensor]
Official = dict[str, State]
Run = Callable[..., str]
ROOT = Path(__file__).resolve().parents[3]
TINY = "1,2,3,4,6"


@pytest.fixture(autouse=True)
def _in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; returns what it prints."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["srdd", *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command that must be refused and write nothing; returns its one line."""

    def call(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            run(*arguments)
        printed = capsys.readouterr()
        assert caught.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("srdd: ")
        assert printed.err.count("\n") == 1
        assert len(printed.err) < 400, printed.err
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err

    return call


@pytest.fixture
def files(tiny_official: Official, tmp_path: Path) -> tuple[Path, Path]:
    """The tiny tokenizer and transformer as VAR would have saved them, buffers included."""
    length = tiny_official["var"]["pos_1LC"].shape[1]
    causal = torch.full((1, 1, length, length), -torch.inf).triu(1)
    buffers = {"attn_bias_for_masking": causal, "blocks.0.attn.zero_k_bias": torch.zeros(32)}
    usage = {"quantize.ema_vocab_hit_SV": torch.ones(5, 48)}
    torch.save(OrderedDict(tiny_official["vqvae"] | usage), tmp_path / "vae.pth")
    torch.save(OrderedDict(tiny_official["var"] | buffers), tmp_path / "var.pth")
    return tmp_path / "vae.pth", tmp_path / "var.pth"


def command(vae: object, transformer: object, *more: object) -> tuple[object, ...]:
    options = ("convert", "--vae", vae, "--transformer", transformer, "--out", "out")
    return (*options, "--patch-nums", TINY, *more)


def greedy(pipeline: Pipeline, io: State) -> Tensor:
    config = SamplerConfig(cfg=2.0, top_k=1)
    return sample(pipeline, io["labels"], config, io["seeds"]).codes_BL


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_the_official_golden_file_converts_and_draws_the_recorded_codes(
    golden_official: Path, tmp_path: Path, run: Run
) -> None:
    parts: Official = {"vqvae": {}, "var": {}, "io": {}}
    for name, tensor in load_file(golden_official).items():
        prefix, rest = name.split(".", 1)
        parts[prefix][rest] = tensor
    torch.save(parts["vqvae"], "vae.pth")
    save_file(parts["var"], "var.safetensors")
    pair = ("--vae", "vae.pth", "--transformer", "var.safetensors", "--patch-nums", "1,2,3,4")
    printed = run("convert", *pair, "--out", "out")
    assert "vae.pth: 323 tensors mapped; left out: quantize.ema_vocab_hit_SV\n" in printed
    assert (
        "var.safetensors: 34 tensors mapped; left out: attn_bias_for_masking, "
        "blocks.*.attn.zero_k_bias (2), lvl_1L\n"
    ) in printed
    pipeline = load_pipeline(tmp_path / "out")
    for cfg in (1.5, 4.0):
        config = SamplerConfig(cfg=cfg, top_k=1)
        codes_BL = sample(pipeline, parts["io"]["labels"], config, [0, 0]).codes_BL
        assert torch.equal(codes_BL, parts["io"][f"greedy_codes_cfg{cfg}"])


def test_a_fresh_process_converts_what_is_sampled_then(
    files: tuple[Path, Path], tmp_path: Path, run: Run, tiny_official: Official
) -> None:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    code = "from srdd_platform.cli.main import main; main()"
    subprocess.run(
        [sys.executable, "-c", code, *map(str, command(*files, "--mask", "markov"))],
        cwd=tmp_path, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    run("sample", "--model", "out", "--num", 2, "--top-k", 5, "--out", "grid.png")
    assert Path("grid.png").read_bytes().startswith(b"\x89PNG")
    io = tiny_official["io"]
    assert torch.equal(greedy(load_pipeline("out"), io), io["markov.greedy"])


def test_the_mask_of_a_file_does_not_come_back(
    files: tuple[Path, Path], run: Run, tiny_official: Official
) -> None:
    io = tiny_official["io"]
    printed = run(*command(*files))
    assert "mask block_causal: VAR's; no mask is read from a file\n" in printed
    printed = run("convert", "--vae", files[0], "--transformer", files[1], "--out", "markov",
                  "--patch-nums", TINY, "--mask", "markov")  # fmt: skip
    assert "mask markov: as given\n" in printed
    for directory, mask in (("out", "block_causal"), ("markov", "markov")):
        pipeline = load_pipeline(directory)
        assert torch.equal(greedy(pipeline, io), io[f"{mask}.greedy"])
        stored = load_file(f"{directory}/transformer/model.safetensors")
        assert not [name for name in stored if "masking" in name or "lvl" in name]
    assert not torch.equal(io["markov.greedy"], io["block_causal.greedy"])


def test_a_files_own_diagonal_mask_is_pointed_out(
    files: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    state = torch.load(files[1])
    state["attn_bias_for_masking"][0, 0, -1, 0] = -torch.inf
    torch.save(state, files[1])
    said = "the file's own mask hides scale 1 from the last code"
    assert said in run(*command(*files))
    (tmp_path / "out").rename(tmp_path / "first")
    assert said not in run(*command(*files, "--mask", "markov"))


def test_what_a_pipeline_directory_says(files: tuple[Path, Path], run: Run) -> None:
    printed = run(*command(*files, "--show-keys"))
    pipeline = load_pipeline("out")
    assert pipeline.sampler == SamplerConfig(cfg=1.5, top_p=0.96)  # top_k 900 of 48 codes is all
    assert pipeline.class_names == ("0", "1", "2", "3")
    assert "  blocks.1.attn.mat_qkv.weight -> blocks.1.attn.qkv.weight\n" in printed
    assert "  blocks.0.attn.zero_k_bias left out\n" in printed
    assert (
        "12 px, 48 codes of 6 channels, 4 phi; transformer: depth 2, width 32, 4 heads" in printed
    )
    assert "srdd sample --model out" in printed


def test_the_sampler_of_full_size_is_vars() -> None:
    from srdd.var.official.convert import official_sampler

    assert official_sampler(4096) == SamplerConfig(cfg=1.5, top_k=900, top_p=0.96)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\ntwo \n drei, vier\nfour\n"),
        ("a.json", '["one", "two", "drei, vier", "four"]'),
        ("b.json", '{"0": "one", "2": "drei, vier", "1": "two", "3": "four"}'),
        ("c.json", '{"0": ["n1", "one"], "1": ["n2", "two"], "2": "drei, vier", "3": "four"}'),
    ],
)
def test_class_names(
    files: tuple[Path, Path], run: Run, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    run(*command(*files, "--classes", name))
    assert load_pipeline("out").class_names == ("one", "two", "drei, vier", "four")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"one\ntwo\n", "2 class names for 4 classes"),
        ("a.txt", b"one\n\nthree\nfour\n", "must hold class names in label order, none of them"),
        ("a.txt", b"caf\xe9\n", "a.txt is not UTF-8 text: save it as UTF-8"),
        ("a.json", b"[1, 2, 3, 4]", "must hold class names in label order"),
        ("a.json", b'{"1": "a", "3": "b"}', "must name the indices 0 to 1"),
        ("a.json", b"nope", "a.json is not valid JSON"),
        ("b.json", None, "b.json does not exist"),
        ("b.txt", None, "b.txt does not exist"),
    ],
)
def test_class_names_that_do_not_fit(
    files: tuple[Path, Path],
    refused: Run,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    said: str,
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    assert said in refused(*command(*files, "--classes", name))


def test_two_names_of_one_parameter_are_refused_with_the_file(refused: Run, tmp_path: Path) -> None:
    """As where torch.compile's names are saved beside the plain ones."""
    torch.save({"a": torch.ones(1), "_orig_mod.a": torch.ones(1)}, "twice.pth")
    said = refused("convert", "--transformer", "twice.pth", "--out", "out")
    assert "twice.pth: a and _orig_mod.a are the same parameter" in said


def _training_state(parts: Official, **args: Any) -> dict[str, Any]:
    """As VAR's trainer saves: weights inside, and what ran beside them."""
    return {
        "epoch": 3,
        "iter": 0,
        "trainer": {
            "config": {"patch_nums": (1, 2, 3, 4, 6), "resos": (2, 4, 6, 8, 12)},
            "var_wo_ddp": OrderedDict(parts["var"]),
            "vae_local": OrderedDict(parts["vqvae"]),
            "var_opt": {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
        },
        "args": OrderedDict(data_path="somewhere", depth=2, **args),
    }


def test_a_training_checkpoint_holds_both_models(
    run: Run, refused: Run, files: tuple[Path, Path], tiny_official: Official
) -> None:
    harmless = {"acc_mean": np.float64(4.5), "best": np.float32(1.5), "n": np.int64(3),
                "more": argparse.Namespace(lr=1e-4, path=Path("x"))}  # fmt: skip
    torch.save(_training_state(tiny_official, **harmless), "ar-ckpt-last.pth")
    given = ("--transformer", "ar-ckpt-last.pth", "--patch-nums", TINY, "--out")
    run("convert", *given, "a")
    run("convert", "--vae", files[0], *given, "b")
    run(*command(*files))
    assert contents(Path("a")) == contents(Path("b")) == contents(Path("out"))
    missing = refused("convert", "--transformer", files[1], "--patch-nums", TINY, "--out", "c")
    assert "var.pth has no tokenizer: give --vae" in missing


class Evil:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("which", ["vae", "transformer"])
def test_a_pickles_code_is_not_run_and_its_global_is_named(
    files: tuple[Path, Path], refused: Run, tmp_path: Path, zipped: bool, which: str
) -> None:
    path = files[which == "transformer"]
    state = {**torch.load(path), "args": Evil()}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    message = refused(*command(*files))
    assert f"{path} needs posix.system to be unpickled, which could run code: refused" in message
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # it is a loaded gun
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    assert "needs torch.nn.modules.linear.Linear to be unpickled" in refused(*command(*files))


def _saved(value: object, **options: Any) -> bytes:
    torch.save(value, "scratch", **options)
    data = Path("scratch").read_bytes()
    Path("scratch").unlink()
    return data


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("var.pth", lambda good: good[: len(good) // 2], "is a zip archive that is damaged or cut"),
        ("var.pth", lambda good: good[:-10], "is a zip archive that is damaged or cut"),
        ("var.pth", lambda good: b"", "var.pth is empty"),
        ("var.pth", lambda good: b"a text file\n" * 9, "is a text file, which begins with 'a text"),
        ("var.pth", lambda good: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS"),
        ("var.pth", lambda good: _saved([1, 2]), "holds a list, not tensors by name"),
        ("var.pth", lambda good: _saved(torch.ones(3)), "holds a Tensor, not tensors by name"),
        ("var.pth", lambda good: _saved({"conv1.weight": torch.ones(3), "fc.bias": torch.ones(1)}),
         "there is no VAR, MVAR or HMAR transformer in it; its keys: conv1.weight, fc.bias"),
        ("var.pth", lambda good: _saved({}), "transformer in it; its keys: none"),
        ("var.pth", None, "var.pth does not exist"),
        ("v.safetensors", lambda good: b"", "v.safetensors is empty"),
        ("v.safetensors", None, "v.safetensors does not exist"),
    ],
)  # fmt: skip
def test_files_that_are_no_weights(
    files: tuple[Path, Path],
    refused: Run,
    name: str,
    content: Callable[[bytes], bytes] | None,
    said: str,
) -> None:
    vae, var = files
    good = var.read_bytes()
    var.unlink()
    if content is not None:
        Path(name).write_bytes(content(good))
    assert said in refused(*command(vae, name))


def test_a_cut_safetensors_file(
    files: tuple[Path, Path], refused: Run, tiny_official: Official
) -> None:
    path = Path("var.safetensors")
    save_file(tiny_official["var"], path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "var.safetensors is a safetensors file that is damaged or cut short" in refused(
        *command(files[0], path)
    )


def test_a_directory_is_no_file(files: tuple[Path, Path], refused: Run, tmp_path: Path) -> None:
    said = f"{tmp_path} is a directory: name the file in it; --transformer takes VAR's"
    assert said in refused(*command(files[0], tmp_path))


def test_a_small_file_cannot_claim_a_large_tensor(
    files: tuple[Path, Path], refused: Run, tiny_official: Official
) -> None:
    state = {**tiny_official["var"], "head.weight": torch.zeros(1, 1).expand(2**20, 2**22)}
    torch.save(state, files[1])
    said = "head.weight claims 17592186044416 bytes and stores 4"
    assert said in refused(*command(*files))


def test_what_exists_is_kept(files: tuple[Path, Path], refused: Run, run: Run) -> None:
    Path("out").mkdir()
    Path("out/mine").write_text("mine")
    assert "out exists: give another --out" in refused(*command(*files))
    Path("out/mine").unlink()
    run(*command(*files))  # an empty directory is no loss
    before = contents(Path("out"))
    assert "out exists" in refused(*command(*files))
    assert contents(Path("out")) == before


def test_a_full_disk_leaves_nothing(
    files: tuple[Path, Path], refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = official_files.save_pipeline

    def fail(pipeline: Pipeline, directory: Path) -> None:
        save(pipeline, directory)
        raise OSError(errno.ENOSPC, "No space left on device", str(directory))

    monkeypatch.setattr(official_files, "save_pipeline", fail)
    assert "no space left" in refused(*command(*files))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--patch-nums", "1,x"], "--patch-nums takes integers like 1,2,3, got '1,x'"),
        (["--patch-nums", "1,2"], "make 5 codes in 2 scales, the transformer has L = 66 in 5"),
        (["--num-heads", "3"], "--num-heads 3: scale_mul_1H11 is there for 4 heads"),
    ],
)
def test_options_that_do_not_fit(
    files: tuple[Path, Path], refused: Run, options: list[str], said: str
) -> None:
    vae, var = files
    assert said in refused(*command(vae, var), *options)


def test_an_unpublished_length_needs_its_schedule(files: tuple[Path, Path], refused: Run) -> None:
    message = refused("convert", "--vae", files[0], "--transformer", files[1], "--out", "out")
    assert (
        "var.pth: L = 66 codes in 5 scales is no published schedule: give --patch-nums" in message
    )


def test_swapped_files(files: tuple[Path, Path], refused: Run) -> None:
    message = refused(*command(files[1], files[0]))
    assert "var.pth: this is the transformer: are the two files swapped?" in message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_convert_export_convert_is_bit_equal(
    files: tuple[Path, Path], run: Run, tiny_official: Official, suffix: str
) -> None:
    run(*command(*files, "--classes", _names()))
    vae, var = f"back/vae{suffix}", f"back/var{suffix}"
    printed = run("export", "--model", "out", "--vae", vae, "--transformer", var)
    assert "VAR's own VQVAE cannot hold this tokenizer" in printed  # it has two levels
    Path("out").rename("first")
    run(*command(vae, var, "--classes", "names.txt"))
    assert contents(Path("out")) == contents(Path("first"))
    exported = torch.load(var) if suffix == ".pth" else load_file(var)
    for name, tensor in tiny_official["var"].items():
        assert torch.equal(exported.pop(name), tensor)
    assert sorted(exported) == [
        "attn_bias_for_masking",
        "blocks.0.attn.zero_k_bias",
        "blocks.1.attn.zero_k_bias",
        "lvl_1L",
    ]
    run("export", "--model", "out", "--vae", f"2{suffix}", "--transformer", f"3{suffix}")
    assert Path(f"3{suffix}").read_bytes() == Path(var).read_bytes()


def _names() -> str:
    Path("names.txt").write_text("a\nb\nc\nd\n")
    return "names.txt"


def test_export_says_what_var_would_do_otherwise(run: Run, tiny_pipeline: Path) -> None:
    printed = run("export", "--model", tiny_pipeline, "--vae", "v.pt", "--transformer", "t.pt")
    assert "the mask is markov: VAR's forward takes it from attn_bias_for_masking" in printed
    assert "num_classes=10, depth=2, embed_dim=32, num_heads=4, mlp_ratio=4," in printed
    assert len(torch.load("t.pt")) == 12 + 2 * 13


def test_a_pruned_model_is_exported_where_no_phi_moves(
    run: Run, refused: Run, tiny_pipeline: Path
) -> None:
    """VAR chooses a scale's phi by the scales' own count; for 1, 3, 4 it happens to be the same."""
    pipeline, files = load_pipeline(tiny_pipeline), ("--vae", "v.pt", "--transformer", "t.pt")
    for sides in ((1, 2, 4), (1, 3, 4)):
        save_pipeline(prune_pipeline(pipeline, sides), Path("-".join(map(str, sides))))
    said = refused("export", "--model", "1-2-4", *files)
    assert "pruned from scales 1,2,3,4: VAR would give another phi to scale 2" in said
    printed = run("export", "--model", "1-3-4", *files)
    assert "ramps guidance over its own 3 scales, here it grows over the parent's 4" in printed
    assert "v_patch_nums=(1, 3, 4)" in printed
    assert torch.load("t.pt")["pos_1LC"].shape == (1, 26, 32)


def test_outputs_that_will_not_do(refused: Run, tiny_pipeline: Path, tmp_path: Path) -> None:
    def export(vae: str, transformer: str, model: object = tiny_pipeline) -> str:
        return refused("export", "--model", model, "--vae", vae, "--transformer", transformer)

    (tmp_path / "old.pth").write_text("mine")
    assert "v.bin must end in one of .pth, .pt, .safetensors" in export("v.bin", "t.pth")
    assert "old.pth exists: give another name" in export("v.pth", "old.pth")
    assert "v.pth cannot be both files" in export("v.pth", "./v.pth")
    assert "nowhere does not exist" in export("v.pth", "t.pth", tmp_path / "nowhere")


def test_json_is_readable(files: tuple[Path, Path], run: Run) -> None:
    run(*command(*files))
    config = json.loads(Path("out/transformer/config.json").read_text())
    assert config["kind"] == "transformer"
    assert config["patch_nums"] == [1, 2, 3, 4, 6]

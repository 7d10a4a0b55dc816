"""Write written_by_55e1f42.tar.xz and .json: what the commands of commit 55e1f42 leave on disk.

    PYTHONPATH=tests python tests/data/make_55e1f42.py DIR

Run it with the code of that commit. ``DIR/begun`` holds trainings and a search that were killed,
``DIR/runs`` the same ones finished.
The weights of tokenizer and classifier are rounded to bfloat16, and files that nobody reads when
a directory is gone on with are left out, so that the archive is small.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import sklearn.datasets
import torch
from safetensors.torch import load_file, save_file
from tiny_digits import few_digits, tiny_preset

from srdd import SamplerConfig, load_pipeline, presets, sample

MASKS = ("markov", "block_causal")
LEFT_OUT = (".lock", ".tune", "grids", "report", "tensorboard", "throughput.jsonl")
RUNS = Path("runs/digits")
DATA, TOKENIZER, CLASSIFIER, SWEEP = (
    RUNS / name for name in ("data", "tokenizer", "classifier", "resample_threshold")
)
SLOW = """
import time, torch
step = torch.optim.AdamW.step
torch.optim.AdamW.step = lambda self, *a, **k: (time.sleep(0.2), step(self, *a, **k))[1]
"""
PRESETS = dict(presets.PRESETS)
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "guided": {"cfg": 1.5},
    "constant ramp": {"cfg": 1.0, "cfg_ramp": "constant"},
    "window": {"cfg": 2.0, "cfg_ramp": "window", "cfg_window": (0.2, 0.7)},
    "top_k": {"top_k": 5},
    "top_p": {"cfg": 0.5, "top_p": 0.8},
    "epsilon": {"epsilon": 0.02},
    "masked, updated": {"cfg": 0.5, "refine_steps": 2, "resample_threshold": 0.1},
    "masked, kept": {"refine_steps": 3, "resample_threshold": 0.2, "feedback": "kept"},
    "masked, none": {"cfg": 1, "refine_steps": 1, "resample_threshold": 0.3, "feedback": "none"},
    "simple": {"cfg": 0.5, "refine_steps": 2, "resample": "simple"},
    "fewer scales": {"cfg": 0.5, "patch_nums": (1, 4)},
}  # fmt: skip
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "tokenizer": ("tokenizer", {}),
    "tokenizer, rate": ("tokenizer", {"lr": 1e-3, "max_steps": 7, "ema": 0.9}),
    "classifier": ("classifier", {}),
    "classifier, seed": ("classifier", {"seed": 3}),
    "markov": ("markov", {}),
    "block_causal": ("block_causal", {}),
    "markov, in parts": ("markov", {"accumulate": 2, "recompute": True}),
    "markov, deeper": ("markov", {"depth": 3, "batch_size": 16, "lr_batch": 8}),
    "markov, unconditional": ("markov", {"unconditional": True}),
    "markov, views": ("markov", {"views": 2, "flip": True}),
    "markov, loss": ("markov", {
        "label_drop": 0.2, "scale_weights": "lognorm", "refine_share": 0.5,
    }),
    "markov, taught": ("markov", {"init_from": "MODEL", "teacher_kl": 0.5}),
    "markov, schedule": ("markov", {
        "lr_schedule": "linear", "final_lr": 0.1, "warmup": 0.1, "warmup_start": 0.1, "hold": 0.2,
        "weight_decay": 0.2, "final_weight_decay": 0.3, "clip": 0.5, "precision": "bfloat16",
    }),
}  # fmt: skip


def inside(command: str, arguments: list[str]) -> None:
    """Run a command in this process, with few digits and tiny models."""
    sklearn.datasets.load_digits = few_digits
    presets.PRESETS["digits"] = tiny_preset
    if command == "srdd":
        from srdd_platform.cli import main

        sys.argv = ["srdd", *arguments]
        main()
    else:
        import runpy

        script = Path(presets.__file__).parents[1] / "sweeps" / "resample_threshold.py"
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(script), run_name="__main__")


def run(*arguments: object, until: Callable[[], bool] | None = None, slow: bool = False) -> None:
    """Run a command in a process of its own, and kill it and its Ray ``until`` something."""
    path = os.pathsep.join([*(["slow"] if slow else []), os.environ["PYTHONPATH"]])
    inner = [sys.executable, __file__, "--inside", *map(str, arguments)]
    print(*map(str, arguments), flush=True)
    process = subprocess.Popen(inner, env={**os.environ, "PYTHONPATH": os.path.abspath(path)})
    while until is not None and not until():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    if until is None:
        assert process.wait() == 0
        return
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.kill()
    process.wait()
    time.sleep(5)


def round_weights(directory: Path) -> None:
    """Round a model's weights to bfloat16."""
    path = directory / "model" / "model.safetensors"
    state = {k: v.bfloat16().to(v.dtype) if v.is_floating_point() else v for k, v in
             load_file(path).items()}  # fmt: skip
    save_file(state, path, metadata={"format": "pt"})


def registered(step: int, *names: str) -> Callable[[], bool]:
    """A condition: Ray lists the checkpoint of that step in each of the trainings."""
    paths = [RUNS / name / "checkpoints" / "checkpoint_manager_snapshot.json" for name in names]
    return lambda: all(path.exists() and f"step_{step:06d}" in path.read_text() for path in paths)


def expected() -> dict[str, Any]:
    """What that commit says of the files."""
    from srdd_platform.codes import codes_dir
    from srdd_platform.evaluate import EvaluationConfig, row_key, weights_digest
    from srdd_platform.jobs import make_job
    from srdd_platform.options import Options, TransformerOptions

    models = {mask: RUNS / mask / "model" for mask in MASKS}
    labels, seeds = list(range(10)), list(range(100, 110))
    codes, keys = {}, {}
    for mask, directory in models.items():
        pipeline = load_pipeline(directory)
        for name, values in SETTINGS.items():
            config = SamplerConfig(**values)
            found = sample(pipeline, torch.tensor(labels), config, seeds)
            codes[f"{mask}, {name}"] = found.codes_BL.tolist()
            evaluation = EvaluationConfig(data="", extractor="", weights="", num=60, seed=2)
            keys[f"{mask}, {name}"] = row_key(
                weights_digest(directory), config, evaluation, "classifier"
            )

    def config_hash(preset: presets.Preset, kind: str, values: dict[str, Any]) -> str:
        values = {k: models["markov"] if v == "MODEL" else v for k, v in values.items()}
        own = TransformerOptions if kind in MASKS else Options
        more = {"tokenizer": TOKENIZER, "mask": kind} if kind in MASKS else {}
        kind = "transformer" if more else kind
        return make_job(kind, preset, DATA, Path("out"), own(**values), **more).config_hash

    return {
        "settings": {name: asdict(SamplerConfig(**v)) for name, v in SETTINGS.items()},
        "labels": labels, "seeds": seeds, "codes": codes, "row_keys": keys,
        "weights_digests": {mask: weights_digest(path) for mask, path in models.items()},
        "options": OPTIONS,
        "config_hashes": {name: config_hash(tiny_preset(), *of) for name, of in OPTIONS.items()},
        "preset_hashes": {
            name: {
                kind: config_hash(replace(preset(), tokenizer=tiny_preset().tokenizer), kind, {})
                for kind in ("tokenizer", "classifier", "markov")
            }
            for name, preset in PRESETS.items()
        },
        "codes_keys": {
            "1 view": codes_dir(DATA, TOKENIZER).name,
            "2 views": codes_dir(DATA, TOKENIZER, views=2, flip=True).name,
        },
    }  # fmt: skip


def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """What goes into the archive, without what differs from machine to machine."""
    path = Path(member.name)
    finished = path.parts[0] == "runs" and "checkpoints" in path.parts
    if finished or any(part in LEFT_OUT for part in path.parts):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    """Make all of it."""
    root, here = Path(sys.argv[1]).resolve(), Path(__file__).parent.resolve()
    (root / "slow").mkdir(parents=True)
    (root / "slow" / "sitecustomize.py").write_text(SLOW)
    os.environ["PYTHONPATH"] = os.path.abspath(os.environ["PYTHONPATH"])
    os.chdir(root)
    run("srdd", "data", "prepare", "--source", "digits", "--resolution", 8, "--out", DATA)
    train_tokenizer = "srdd", "train", "tokenizer", "--data", DATA, "--out", TOKENIZER
    run(*train_tokenizer, until=registered(240, "tokenizer"), slow=True)
    shutil.copytree(TOKENIZER, Path("begun") / "tokenizer")
    run(*train_tokenizer)
    run("srdd", "train", "classifier", "--data", DATA, "--out", CLASSIFIER)
    for directory in (TOKENIZER, CLASSIFIER):
        round_weights(directory)
    run("sweep", "--num", 50, "--trials", 14, until=registered(80, *MASKS), slow=True)
    for mask in MASKS:
        shutil.copytree(RUNS / mask, Path("begun") / mask)
    rows = SWEEP / "rows"
    run("sweep", "--num", 50, "--trials", 14, until=lambda: len(list(rows.glob("*.json"))) > 18)
    shutil.copytree(SWEEP, Path("begun") / SWEEP.name)
    run("sweep", "--num", 50, "--trials", 14)
    run("srdd", "data", "encode", "--data", DATA, "--tokenizer", TOKENIZER,
        "--views", 2, "--flip")  # fmt: skip
    run("srdd", "train", "distill", "--data", DATA, "--model", RUNS / "markov", "--stages", "1,4",
        "--stage-steps", 2, "--weights", CLASSIFIER, "--num", 50,
        "--out", RUNS / "distilled")  # fmt: skip
    pack(here)


def pack(here: Path) -> None:
    """Write what that commit says of the files, and the files."""
    text = json.dumps(expected()) + "\n"
    (here / "written_by_55e1f42.json").write_text(text)
    archive = here / "written_by_55e1f42.tar.xz"
    with (
        lzma.open(archive, "wb", preset=9 | lzma.PRESET_EXTREME) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name in ("begun", "runs"):
            tar.add(name, name, filter=kept)
    print(archive, archive.stat().st_size)


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        inside(sys.argv[2], sys.argv[3:])
    else:
        main()

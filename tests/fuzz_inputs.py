"""Random inputs of commands: names, folders, files, locations, environments. A seed makes a case.

Each case is made in an empty folder and holds the command line and the environment variables with
which the command is to be run there.
"""

import io
import os
import random
import shutil
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

NAMES = (
    "cat", "dog", "Cat", "train", "test", "val", "validation", "Training", "0", "1", "2", "10",
    "01", "-1", "--help", "lamp, desk", "lamp", "desk", 'quo"te', "it's", "a,b,c", ",", " blank ",
    "index:1", "index:99", "tench, Tinca tinca", "n01440764", "caf\u00e9", "cafe\u0301",
    "\ufeffbom",
    "\u7814\u7a76", "\U0001f408", "tab\there", "new\nline", "x" * 200, "%20", "a=b", "a#b", "a?b",
    "CON", ".hidden", "__MACOSX", "a/b", "\udce9", "'lamp'", "{}", "[1]", "null", "1e3", "0x10",
)  # fmt: skip
FILES = (
    "a.jpg", "b.JPEG", "c.png", "d.webp", "e.gif", "f.bmp", "g.tif", "h.heic", "i.avif", "j.txt",
    "k.csv", "Thumbs.db", ".DS_Store", "desktop.ini", "l", "m.jpg.part", "n.svg", "o.mp4", "p.npz",
    "._a.jpg", "metadata.jsonl", "caf\u00e9.png", "sp ace.png", "q.PNG", "r.jfif", "s.zip",
)  # fmt: skip
LOCATIONS = (
    "", " ", ".", "..", "/", "//", "~", "~/x", "~nobody/x", "data", "./data/", "data//", "data#1",
    "data?x=1", "a b", "file:data", "file:/tmp/srdd-none", "file:///tmp/srdd%20none", "file://h/x",
    "file://localhost/tmp/none", "FILE:///tmp/none", "s3:", "s3://", "s3:///x", "s3://bucket",
    "s3://bucket/", "s3://bucket/a#b", "s3://bucket/a?b=c", "s3://key:secret@bucket/x", "x://y/z",
    "s3://bucket/%41", "C:\\data", "C:/data", "\\\\host\\share", "http://127.0.0.1:9/x",
    "https://127.0.0.1:9/x", "hdfs://127.0.0.1:9/x", "hf://a/b", "data\x00", "data\nx",
    "\udce9", "x" * 300, "/dev/null", "/dev/full", "/proc/self/mem", "-", "@", "%", "$HOME", "*",
)  # fmt: skip
VARIABLES = {
    "RAY_ADDRESS": ("http://127.0.0.1:8265", "ray://127.0.0.1:10001", "127.0.0.1:1", "auto", "",
                    "local", " ", "nonsense", "127.0.0.1", "[::1]:6379", "https://127.0.0.1"),
    "RAY_AUTH_MODE": ("token", "disabled", "TOKEN", "nonsense", ""),
    "RAY_AUTH_TOKEN": ("", "x", " ", "\u00e9", "a" * 1000),
    "RAY_AUTH_TOKEN_PATH": ("", "/dev/null", "/nonexistent/token", "."),
    "RAY_TMPDIR": ("/nonexistent", "/dev/null", "x" * 120, "relative", ""),
    "TMPDIR": ("/nonexistent", "/dev/null", "/" + "x" * 120, "", "relative"),
    "HOME": ("/", "/nonexistent", "", "/proc"),
    "CUDA_VISIBLE_DEVICES": ("", "-1", "0", "GPU-123", "0,1,2", "nonsense", "NoDevFiles"),
    "http_proxy": ("http://127.0.0.1:9", "nonsense", "127.0.0.1:9"),
    "HTTPS_PROXY": ("http://127.0.0.1:9",),
    "no_proxy": ("*", ""),
    "COLUMNS": ("1", "0", "-3", "x", "10000"),
    "LINES": ("x",),
    "TERM": ("dumb", "", "nonsense"),
    "LC_ALL": ("C", "POSIX", "nonsense"),
    "PYTHONIOENCODING": ("ascii", "latin-1", "utf-8:strict"),
    "NO_COLOR": ("1",),
    "OMP_NUM_THREADS": ("1", "0", "x"),
    "RAY_NAMESPACE": ("x", ""),
    "RAY_RUNTIME_ENV": ("{", "{}"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def image_bytes(rng: random.Random) -> bytes:
    """An image file of a random format and mode."""
    side = rng.choice((1, 3, 16, 20))
    mode = rng.choice(("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"))
    image = Image.new(mode, (side, rng.choice((1, side, 4 * side))))
    buffer = io.BytesIO()
    for kind in (rng.choice(("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")), "TIFF"):
        try:
            image.save(buffer, kind)
            break
        except (OSError, ValueError, KeyError):  # the format does not have this mode
            buffer = io.BytesIO()
    return buffer.getvalue()


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Bytes of a file that something happened to."""
    kind = rng.randrange(8)
    if kind == 0:
        return b""
    if kind == 1:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 2:
        return rng.choice((b"<!DOCTYPE html>", b"version https://git-lfs", b"{}", b"other"))
    if kind == 3:
        return rng.randbytes(rng.randrange(1, 300))
    if kind == 4:
        return rng.randbytes(8) + data
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 9)):
        if changed:
            changed[rng.randrange(min(len(changed), 4000 if kind == 5 else len(changed)))] ^= (
                1 << rng.randrange(8)
            )
    return bytes(changed)


def put(path: str | Path, data: bytes) -> None:
    """Write a file and the folders above it, where the file system takes their names."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)
    except (OSError, ValueError):
        pass


def names_case(rng: random.Random, pipeline: Path) -> Case:
    """Classes asked for by text, of a model whose classes have odd names."""
    import json

    shutil.copytree(pipeline, "model")
    names = rng.sample(NAMES, 10)
    if rng.random() < 0.7:
        Path("model/classes.json").write_text(json.dumps(names))
    if rng.random() < 0.15:
        Path("model/classes.json").write_bytes(mutated(rng, json.dumps(names).encode()))
    asked = [rng.choice((*names, *NAMES)) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.3:
        asked = [f'"{each}"' for each in asked]
    if rng.random() < 0.3:
        asked = [unicodedata.normalize("NFD", each) for each in asked]
    out = rng.choice(("grid.png", "out"))
    text = rng.choice((",", ", ", " ,", ";")).join(asked)
    return Case(
        arguments=["sample", "--model", "model", f"--classes={text}", "--num", "2", "--out", out]
    )


def tree_case(rng: random.Random, pipeline: Path) -> Case:
    """Folders of images as people have them, prepared."""
    tops = rng.sample(NAMES, rng.randrange(0, 4)) + rng.sample(("train", "test", "val", "x"), 1)
    for top in tops:
        for name in rng.sample(NAMES, rng.randrange(0, 4)):
            for file in rng.sample(FILES, rng.randrange(0, 5)):
                data = image_bytes(rng)
                place = os.path.join("images", *rng.choice(((top, name), (top,), ())), file)
                put(place, data if rng.random() < 0.8 else mutated(rng, data))
    if rng.random() < 0.1:
        put("images/link", b"")
        with_link = Path("images/loop")
        with_link.symlink_to(".") if Path("images").is_dir() else None
    options = ["--max-bad", str(rng.choice((0, 1, 50)))] if rng.random() < 0.5 else []
    source = rng.choice(
        (["--source", "folder"], ["--source", "folder"], ["--recipe", "imagenet"],
         ["--recipe", "mini-imagenet"], ["--recipe", "sun397"], ["--recipe", "ffhq"],
         ["--recipe", "cifar10"], ["--recipe", "afhq"])
    )  # fmt: skip
    return Case(
        arguments=["data", "prepare", *source, "--path", "images", "--resolution",
                   rng.choice(("8", "16")), "--out", "shards", *options]
    )  # fmt: skip


def file_case(rng: random.Random, pipeline: Path) -> Case:
    """Weights and configurations that something happened to."""
    shutil.copytree(pipeline, "model")
    good = Path("model/transformer/model.safetensors").read_bytes()
    name = "w" + rng.choice((".pth", ".pt", ".safetensors", ".bin", ""))
    kind = rng.randrange(4)
    if kind == 0:
        files = sorted(path for path in Path("model").rglob("*") if path.is_file())
        chosen = rng.choice(files)
        chosen.write_bytes(mutated(rng, chosen.read_bytes()))
        return Case(arguments=["sample", "--model", "model", "--num", "1", "--out", "g.png"])
    put(name, good if rng.random() < 0.2 else mutated(rng, good))
    if kind == 1:
        return Case(
            arguments=["convert", "--transformer", name, "--vae", rng.choice((name, "gone", ".")),
                       "--patch-nums", "1,2,3,4", "--out", "out"]
        )  # fmt: skip
    base = ["train", "tokenizer", "--preset", "digits", "--data", "SHARDS", "--out", "run",
            "--dry-run", "--max-steps", "2"]  # fmt: skip
    more = rng.choice(
        (["--lpips", name], ["--extractor", "inception", "--weights", name],
         ["--extractor", "classifier", "--weights", name], ["--lpips", name, "--lpips-heads", name])
    )  # fmt: skip
    if kind == 2:
        return Case(arguments=[*base, *more])
    init = rng.choice((name, "model", ".", "gone"))
    return Case(
        arguments=["train", "transformer", "--preset", "digits", "--data", "SHARDS", "--tokenizer",
                   rng.choice(("model", name, ".")), "--out", "run", "--dry-run", "--init-from",
                   init]
    )  # fmt: skip


def location_case(rng: random.Random, pipeline: Path) -> Case:
    """Paths and URIs of every shape, in every option that takes one."""
    at = rng.choice(LOCATIONS)
    other = rng.choice(LOCATIONS)
    return Case(
        arguments=rng.choice(
            (
                ["data", "fetch", f"--uri={at}", f"--out={other}"],
                ["train", "tokenizer", f"--data={at}", "--out", "run", "--dry-run"],
                ["train", "tokenizer", "--data", "SHARDS", f"--out={at}", "--dry-run",
                 "--max-steps", "2"],
                ["train", "classifier", "--data", "SHARDS", "--out", "run", f"--checkpoints={at}",
                 "--dry-run", "--max-steps", "2"],
                ["sample", f"--model={at}", "--num", "1", "--out", "g.png"],
                ["sample", "--model", str(pipeline), "--num", "1", f"--out={at}"],
                ["report", f"./{at}" if at.startswith("-") else at],
                ["export", "--model", str(pipeline), f"--vae={at}", f"--transformer={other}"],
                ["data", "prepare", "--source", "folder", f"--path={at}", "--resolution", "8",
                 f"--out={other}"],
                ["data", "encode", f"--data={at}", f"--tokenizer={other}"],
                ["train", "transformer", f"--data={at}", f"--tokenizer={other}", "--out", "run",
                 "--dry-run"],
            )
        )
    )  # fmt: skip


def environment_case(rng: random.Random, pipeline: Path) -> Case:
    """Variables that batch systems, companies and other programs set."""
    chosen = rng.sample(sorted(VARIABLES), rng.randrange(1, 5))
    environment = {name: rng.choice(VARIABLES[name]) for name in chosen}
    address = rng.choice(
        ([], [], ["--address", "auto"], ["--address", "127.0.0.1:1"],
         ["--address", rng.choice(VARIABLES["RAY_ADDRESS"])])
    )  # fmt: skip
    return Case(
        arguments=rng.choice(
            (
                ["train", "classifier", "--preset", "digits", "--data", "SHARDS", "--out", "run",
                 "--max-steps", "1", *address],
                ["sample", "--model", str(pipeline), "--num", "1", "--out", "g.png"],
                ["serve", str(pipeline), "--port", "0", *address],
                ["data", "prepare", "--source", "digits", "--resolution", "8", "--out", "d"],
            )
        ),
        environment=environment,
    )  # fmt: skip


KINDS = {
    "names": names_case,
    "trees": tree_case,
    "files": file_case,
    "locations": location_case,
    "environments": environment_case,
}


def make_case(kind: str, seed: int, pipeline: Path, shards: Path) -> Case:
    """The case of a seed, made in the working folder."""
    case = KINDS[kind](random.Random(f"{kind} {seed}"), pipeline)
    arguments = [str(shards) if each == "SHARDS" else each for each in case.arguments]
    return Case(arguments=arguments, environment=case.environment)

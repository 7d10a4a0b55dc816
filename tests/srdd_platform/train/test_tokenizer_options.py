import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from srdd.errors import UserError
from srdd.images import to_float, to_uint8
from srdd.metrics.quality import ssim
from srdd.presets import Preset, digits
from srdd.train.config import OptimConfig, TokenizerLossConfig
from srdd.train.var.perceptual import Lpips
from srdd.train.var.tokenizer_task import TokenizerTask
from srdd.var.config import TokenizerConfig
from srdd_platform.core.files import sha256_file
from srdd_platform.core.ray_session import Session
from srdd_platform.core.runs import read_metrics
from srdd_platform.data.dataset import ShardDataset, load_arrays
from srdd_platform.evaluation.extractors import load_extractor
from srdd_platform.evaluation.metrics import Reference, measure
from srdd_platform.train.data import ImageData
from srdd_platform.train.job import make_job
from srdd_platform.train.kind import Settings
from srdd_platform.train.kinds.tokenizer import checked_lpips
from srdd_platform.train.launcher import train
from srdd_platform.train.options import Options, TokenizerOptions
from srdd_platform.train.validation import validate

MODEL = TokenizerConfig(
    resolution=16, patch_nums=(1, 2, 4), vocab_size=32, z_channels=8, ch=8, ch_mult=(1, 1, 2),
    num_res_blocks=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under torchvision's names, with heads."""
    path = tmp_path_factory.mktemp("lpips") / "vgg.pth"
    state = {}
    for name, value in Lpips().state_dict().items():
        if name.startswith("convs"):
            state[name.replace("convs", "features")] = value
        elif name.startswith("heads"):
            state[f"lin{name[-1]}.model.1.weight"] = torch.rand_like(value).view(1, -1, 1, 1)
    torch.save(state, path)
    return path


def _small() -> Preset:
    base = digits()
    loss = replace(base.tokenizer_loss, gan_width=8)
    optim = replace(base.tokenizer_optim, steps=12, batch_size=16)
    return replace(base, tokenizer=MODEL, tokenizer_loss=loss, tokenizer_optim=optim)


def _job(data: Path, out: Path, **options: Any) -> Any:
    return make_job("tokenizer", _small(), data, out, TokenizerOptions(**options))


def test_options_reach_the_settings(digits_shards: Path, lpips_file: Path, tmp_path: Path) -> None:
    given = {"gan_weight": 0.4, "gan_start": 0.5, "entropy_weight": 0.1, "scale_drop": 0.2}
    job = _job(digits_shards, tmp_path / "run", lpips=lpips_file, **given)
    loss = job.settings.to_json()["loss"]
    assert [loss[n] for n in ("gan", "gan_start", "entropy", "scale_drop", "lpips")] == [
        0.4, 0.5, 0.1, 0.2, 1.0,
    ]  # fmt: skip
    assert job.settings.more["lpips"] == [sha256_file(lpips_file)]
    assert job.inputs.lpips == (str(lpips_file.resolve()),)
    weighted = _job(digits_shards, tmp_path / "run", lpips=lpips_file, lpips_weight=0.25)
    assert weighted.loss.lpips == 0.25
    plain = _job(digits_shards, tmp_path / "run")
    assert plain.settings.to_json()["loss"] == {**loss, "gan": 0, "gan_start": 0.2, "entropy": 0,
                                      "scale_drop": 0, "lpips": 0}  # fmt: skip
    assert "lpips" not in plain.settings.more
    same = make_job("tokenizer", _small(), digits_shards, tmp_path / "run", Options())
    assert same.config_hash == plain.config_hash


def test_wrong_options_are_refused(digits_shards: Path, lpips_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--lpips .*absent.* does not exist"):
        TokenizerOptions(lpips=tmp_path / "absent")
    with pytest.raises(UserError, match="--lpips-heads goes with --lpips"):
        TokenizerOptions(lpips_heads=lpips_file)
    with pytest.raises(UserError, match="--lpips-weight goes with --lpips"):
        TokenizerOptions(lpips_weight=1.0)
    with pytest.raises(UserError, match="--workers"):
        TokenizerOptions(workers=0)
    with pytest.raises(UserError, match="scale_drop"):
        _job(digits_shards, tmp_path / "run", scale_drop=1.5)
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="'weight' is no weight of VGG16"):
        _job(digits_shards, tmp_path / "run", lpips=other)
    with pytest.raises(UserError, match="Inception"):
        _job(digits_shards, tmp_path / "run", extractor="inception", weights=other)
    small = replace(_small(), tokenizer_loss=TokenizerLossConfig(lpips=0.5))
    with pytest.raises(UserError, match="give --lpips FILE"):
        make_job("tokenizer", small, digits_shards, tmp_path / "run", Options())
    assert not (tmp_path / "run").exists()


def test_weights_that_changed_since_are_refused(lpips_file: Path, tmp_path: Path) -> None:
    more = {"lpips": [sha256_file(lpips_file)]}
    settings = Settings(model=MODEL, optim=OptimConfig(steps=1), more=more)
    assert isinstance(checked_lpips([str(lpips_file)], settings), Lpips)
    assert checked_lpips([], settings) is None
    changed = tmp_path / "changed.pth"
    changed.write_bytes(lpips_file.read_bytes() + b"0")
    with pytest.raises(UserError, match="has changed"):
        checked_lpips([str(changed)], settings)


@torch.no_grad()
def test_held_out_ssim_and_rfid(digits_shards: Path, classifier_dir: Path) -> None:
    """The rFID is torch-fidelity's number, between originals and reconstructions."""
    task = TokenizerTask(MODEL, TokenizerLossConfig(), OptimConfig(steps=1))
    extractor = ("classifier", str(classifier_dir))
    data = partial(ImageData, partial(ShardDataset, digits_shards))
    found = validate(task, data(extractor=extractor))
    images, labels = load_arrays(digits_shards, "val")
    tokenizer = task.tokenizer.eval()
    decoded = to_uint8((tokenizer.decode(tokenizer.encode(to_float(images))) + 1) / 2)
    assert found["ssim"] == pytest.approx(float(ssim(images, decoded).mean()), abs=1e-3)
    features = load_extractor("classifier", classifier_dir)
    expected = measure(features(decoded), Reference(features(images)), labels, accuracy=False)
    assert found["rfid"] == pytest.approx(expected["fid"], rel=1e-3)
    assert found["rfid"] > 1
    plain = validate(task, data())
    assert {"n", "psnr", "ssim"} <= plain.keys()
    assert "rfid" not in plain


@pytest.mark.ray
def test_two_ray_workers_train_with_all_losses(
    ray_session: Session, digits_shards: Path, classifier_dir: Path, lpips_file: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    options: dict[str, Any] = {
        "lpips": lpips_file, "lpips_weight": 0.01, "gan_weight": 0.4, "entropy_weight": 0.1,
        "scale_drop": 0.5, "weights": classifier_dir, "workers": 2, "checkpoint_every": 6,
    }  # fmt: skip
    run = tmp_path / "run"
    train([_job(digits_shards, run, **options)], ray_session)
    last = read_metrics(run)[-1]
    assert last["gan_ratio"] >= 0.015
    assert {"gan", "gan_d_loss", "gan_real", "gan_fake", "lpips", "entropy"} <= last.keys()
    assert {"psnr", "ssim", "rfid"} <= json.loads((run / "validation.json").read_text()).keys()
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["lpips"] == [sha256_file(lpips_file)]
    assert config["settings"]["loss"]["scale_drop"] == 0.5
    assert config["runtime"]["extractor"] == ["classifier", str(classifier_dir.resolve())]
    with pytest.raises(UserError, match=r"loss\.gan"):
        train([_job(digits_shards, run, **{**options, "gan_weight": 0.5})], None)

"""Artefacts that many tests read and none may change: shards, pipelines, a trained classifier."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import httpx
import psutil
import pytest
import torch
from moto.server import ThreadedMotoServer
from torch import Tensor

from srdd import Pipeline, SamplerConfig
from srdd.checkpoint import save_model
from srdd.load import load_pipeline
from srdd.metrics.classifier import ClassifierConfig
from srdd.train.classifier import ClassifierTask
from srdd.train.config import OptimConfig
from srdd.train.loop import fit
from srdd.train.task import Batch
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.init import init_weights
from srdd.var.masks import Mask
from srdd.var.pipeline import save_pipeline
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd_platform.core.runs import read_metrics
from srdd_platform.data.dataset import GlobalBatchSampler, load_arrays
from srdd_platform.data.shards import prepare
from srdd_platform.evaluation.extractors import Extractor, load_extractor

TINY_MASKS: tuple[Mask, ...] = ("markov", "block_causal")


@pytest.fixture(scope="session")
def digits_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits at 16 px, several shards a split."""
    out = tmp_path_factory.mktemp("shards") / "digits"
    prepare(source="digits", resolution=16, out=out, shard_size_images=300, workers=1)
    return out


@torch.no_grad()
def build_tiny_pipeline(mask: Mask) -> Pipeline:
    """A pipeline of random weights whose every part bears on the images: open gates, class head."""
    torch.manual_seed(1)
    shared = {"patch_nums": (1, 2, 3, 4), "z_channels": 8, "vocab_size": 32}
    tokenizer = Tokenizer(
        TokenizerConfig(resolution=16, ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, **shared)
    )
    model = ScaleTransformer(
        TransformerConfig(mask=mask, num_classes=10, depth=2, width=32, num_heads=4, **shared)
    )
    init_weights(model, gate=1.0, head=6.0)
    model.class_emb.weight.normal_()
    for block in model.layers:
        block.ada_lin.bias[:64] += 1
    model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return Pipeline(tokenizer.eval(), model.eval(), SamplerConfig(), names)


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[Mask, Path]:
    """Pipeline directories by mask; both hold the same tokenizer."""
    root = tmp_path_factory.mktemp("pipelines")
    for mask in TINY_MASKS:
        save_pipeline(build_tiny_pipeline(mask), root / mask)
    return {mask: root / mask for mask in TINY_MASKS}


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_pipelines: dict[Mask, Path]) -> Path:
    """The Markovian one."""
    return tiny_pipelines["markov"]


@pytest.fixture(scope="session")
def slow_pipeline(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that takes about 0.1 s an image, so that a request can be met in progress."""
    long = SamplerConfig(refine_steps=100, resample="simple")
    directory = tmp_path_factory.mktemp("pipelines") / "slow"
    save_pipeline(replace(load_pipeline(tiny_pipeline), sampler=long), directory)
    return directory


@pytest.fixture(scope="session")
def classifier_dir(digits_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's model directory, trained on the digits' train split."""
    images, labels = load_arrays(digits_shards, "train")
    optim = OptimConfig(steps=200, lr=1e-2, weight_decay=0.01)
    model = ClassifierConfig(num_classes=10, resolution=16, ch=8, features=32)
    with torch.random.fork_rng(devices=[]):
        task = ClassifierTask(model, optim)

    def batches(step: int) -> Iterator[Batch]:
        sampler = GlobalBatchSampler(
            len(images), optim.batch_size, seed=0, first_step=step, last_step=optim.steps
        )
        for rows in sampler:
            index = torch.tensor(rows)
            yield Batch(images[index], labels[index], index, optim.batch_size)

    fit(task, optim, batches)
    directory = tmp_path_factory.mktemp("classifier") / "model"
    save_model(directory, "classifier", model, task.classifier.state_dict())
    return directory


@pytest.fixture(scope="session")
def extractor(classifier_dir: Path) -> Extractor:
    """That classifier as an extractor."""
    return load_extractor("classifier", classifier_dir)


@pytest.fixture(scope="session")
def digits(digits_shards: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """uint8 images and labels of either split."""
    return {split: load_arrays(digits_shards, split) for split in ("train", "val")}


class AfterStep:
    """Does something to the processes that train, once a run has logged a step."""

    def __init__(self, run: Path, step: int, act: Callable[[int], object]) -> None:
        self.run, self.step, self.act = run, step, act
        self.pids: list[int] = []
        self._before = read_metrics(run)  # of an earlier start, whose workers are gone
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        begun = False  # a run that goes on cuts its lines first
        while not self._stop.wait(0.02):
            lines = read_metrics(self.run)
            begun = begun or lines != self._before
            if begun and lines and lines[-1]["step"] >= self.step:
                break
        for process in psutil.Process().children(recursive=True):  # another Ray is not ours
            try:
                title = " ".join(process.cmdline() or [process.name()])
            except psutil.Error:
                continue
            if "RayTrainWorker" in title:
                self.act(process.pid)
                self.pids.append(process.pid)

    def close(self) -> None:
        """Stop watching; a test that did nothing to anybody shows nothing."""
        self._stop.set()
        self._thread.join(timeout=60)
        assert self.pids, "there was no worker: the test shows nothing"


@pytest.fixture(scope="session")
def after_step() -> Callable[[Path, int, Callable[[int], object]], AfterStep]:
    """A watcher of a run's workers after a step; ``close()`` it when the run is done."""
    return AfterStep


@pytest.fixture(scope="session")
def kill_worker_after() -> Callable[[Path, int], AfterStep]:
    """A watcher that kills a run's workers after a step."""
    return lambda run, step: AfterStep(run, step, lambda pid: os.kill(pid, signal.SIGKILL))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server on the loopback interface, which this process and its children reach."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "an-access-key", "AWS_SECRET_ACCESS_KEY": "a-very-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    httpx.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()  # others' buckets
    boto3.client("s3").create_bucket(Bucket="models")
    yield "s3://models"
    server.stop()

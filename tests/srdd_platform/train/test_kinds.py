"""A kind of training that only these tests know passes through everything by its one entry."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from srdd.checkpoint import save_model
from srdd.errors import UserError
from srdd.images import to_float, to_uint8
from srdd.presets import digits
from srdd.train.config import OptimConfig
from srdd.train.loop import checkpoint_hook, fit
from srdd.train.previews import COLUMNS, above_reconstructions
from srdd.train.task import Batch, HeldOut, Task, random_images
from srdd.train.workers import ALONE
from srdd_platform.core.storage import open_storage
from srdd_platform.data.dataset import load_arrays
from srdd_platform.train.batches import batches
from srdd_platform.train.checkpoints import write_checkpoint
from srdd_platform.train.data import open_data
from srdd_platform.train.dry_run import dry_run
from srdd_platform.train.estimate import measure, parameter_counts, worker_memory
from srdd_platform.train.export import finish
from srdd_platform.train.extend import is_finished
from srdd_platform.train.job import Job, make_job, parse_job
from srdd_platform.train.kind import Inputs, Kind, Request, Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.options import Options
from srdd_platform.train.previews import draw
from srdd_platform.train.validation import validate

WIDTH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig:
    """An autoencoder of two linear layers."""

    resolution: int
    width: int

    @property
    def size(self) -> int:
        return 3 * self.resolution**2


class LinearLoss(nn.Module):
    """The mean square error in pixels."""

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "encoder": nn.Linear(config.size, config.width),
                "decoder": nn.Linear(config.width, config.size),
            }
        )

    def reconstruct(self, images: Tensor) -> Tensor:
        code = self.layers["encoder"](to_float(images).flatten(1))
        decoded: Tensor = self.layers["decoder"](code).view(images.shape)
        return decoded

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.reconstruct(batch.inputs) - to_float(batch.inputs)).square().mean()
        return loss, {"loss": loss}


class LinearTask(Task):
    """The autoencoder's training."""

    module: LinearLoss

    def __init__(self, config: LinearConfig, optim: OptimConfig) -> None:
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(optim.seed)
            self.module = LinearLoss(config)

    def flops(self, step: int) -> int:
        return 5 * 2 * self.config.size * self.config.width  # pixels need no gradient

    def random_batch(self, num: int, global_size: int) -> Batch:
        return random_images(num, self.config.resolution, global_size)

    def prepare(self, images: Callable[[int], Tensor]) -> None:
        self.module.layers["decoder"].bias.data = to_float(images(100)).flatten(1).mean(0)

    def validate(self, held_out: HeldOut) -> dict[str, float]:
        batch = Batch(held_out.inputs, held_out.labels_n, held_out.labels_n, 1)
        return {"n": len(held_out.inputs), "mse": float(self.module(batch, 0)[0])}

    def preview(self, images: Callable[[int], Tensor]) -> Tensor:
        originals = images(COLUMNS)
        return above_reconstructions(
            originals, to_uint8((self.module.reconstruct(originals) + 1) / 2)
        )

    def export(self, directory: Path, class_names: Sequence[str]) -> None:
        save_model(directory, "linear", self.config, self.module.layers.state_dict())


def plan(request: Request) -> tuple[Settings, Inputs]:
    model = LinearConfig(resolution=request.manifest.resolution, width=WIDTH)
    optim = request.options.apply(request.preset.classifier_optim)
    return Settings(model=model, optim=optim), Inputs()


def build(settings: Settings, inputs: Inputs) -> LinearTask:
    return LinearTask(settings.model, settings.optim)


@pytest.fixture
def job(digits_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setitem(
        KINDS, "linear", Kind(name="linear", model=LinearConfig, plan=plan, build=build)
    )
    options = Options(max_steps=40, batch_size=32, ema=0.5, checkpoint_every=40)
    return make_job("linear", digits(), digits_shards, tmp_path / "run", options)


def test_its_job_is_plain_data_and_back(job: Job) -> None:
    settings, runtime = job.config
    assert list(settings) == ["model", "optim", "data"]
    assert settings["model"] == {"resolution": 16, "width": WIDTH}
    assert runtime["workers"] == 1
    assert parse_job(job.to_plain()) == job
    assert job.title == "linear run"


def test_it_is_counted_and_measured_before_it_starts(job: Job) -> None:
    weights = 2 * 768 * WIDTH + 768 + WIDTH
    memory = worker_memory(job)
    assert memory.weights == memory.gradients == memory.average == 4 * weights
    assert measure(job, 4).images == 4
    text = dry_run(job)
    assert f"{weights:,}" in text
    assert "6.144e-05 GFLOPs an image" in text


def test_a_module_may_have_parameters_of_its_own(job: Job) -> None:
    task = job.build_task()
    task.module = nn.Linear(3, 2)
    assert parameter_counts(task) == {"weight": (6, 0), "bias": (2, 0)}


def test_it_trains_validates_is_seen_and_leaves_a_model(job: Job, tmp_path: Path) -> None:
    run, data, task = Path(job.run), open_data(job), job.build_task()
    run.mkdir()
    (run / "config.json").write_text("{}")
    storage = open_storage(job.run, "")
    task.prepare(data.images.first)
    before = validate(task, data)
    paths: list[str] = []

    def stream(step: int) -> Iterator[Batch]:
        return batches(data, job.optim, ALONE, range(step, job.steps), torch.device("cpu"))

    def save(step: int, state: dict[str, object]) -> None:
        paths.append(write_checkpoint(storage, state, job.config_hash, 1))

    ema = fit(task, job.optim, stream, hooks=[checkpoint_hook(40, save)])
    with ema.applied():
        after = validate(task, data)
        draw(task, data.images.spread, tmp_path / "grid.png")
    assert before["n"] == after["n"] == 360
    assert after["mse"] < 0.8 * before["mse"] < math.inf
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    finish(job, paths[-1])
    assert is_finished(run)
    found = load_file(run / "model" / "model.safetensors")
    weight = ema.shadow["layers.decoder.weight"]
    assert torch.equal(found["decoder.weight"], weight)


def test_prepare_saw_the_train_images(job: Job, digits_shards: Path) -> None:
    task, data = job.build_task(), open_data(job)
    task.prepare(data.images.first)
    images, _ = load_arrays(digits_shards, "train")
    mean = to_float(images[:100]).flatten(1).mean(0)
    torch.testing.assert_close(task.module.get_parameter("layers.decoder.bias").data, mean)


def test_what_it_does_not_offer_is_refused(job: Job, digits_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train a linear with ddp"):
        make_job("linear", digits(), digits_shards, tmp_path / "x", Options(parallel="fsdp"))

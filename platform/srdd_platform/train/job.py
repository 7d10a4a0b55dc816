"""What a training is, as a value: its settings, its files and how it runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from srdd.errors import UserError
from srdd.presets import Preset
from srdd.train.config import OptimConfig
from srdd.train.task import Task
from srdd.var.masks import Mask
from srdd_platform.core.files import digest
from srdd_platform.core.location import parse_location
from srdd_platform.core.runs import decisive
from srdd_platform.data.dataset import ShardDataset
from srdd_platform.data.options import CACHE_GB
from srdd_platform.data.store import Store, open_store
from srdd_platform.train.kind import Inputs, Kind, Request, Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.options import Options, Parallel


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """How a training runs: with what workers, what it keeps, and when it looks at itself."""

    workers: int = 1  # the most
    min_workers: int = 0  # the fewest; 0: as many as the most
    max_failures: int = 3  # lost workers that brought no new checkpoint, before it gives up
    wait_for_resources: float | None = None  # seconds for workers' room; None: as the cluster is
    checkpoints: str = ""  # URI where they lie; "": in the run directory
    keep_checkpoints: int = 2
    parallel: Parallel = "ddp"  # how workers share a model
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # of a CPU worker
    checkpoint_every: int = 50
    log_every: int = 10
    validate_every: int = 0  # steps; 0: at the end alone
    grid_every: int = 0  # steps; 0: at the end alone
    loader_workers: int = 1  # threads that read and decode ahead
    cache: str = ""  # directory for copies of shards at a URI
    cache_gb: float = CACHE_GB

    @classmethod
    def of(cls, options: Options, checkpoint_every: int) -> Self:
        """As options say, with a preset's interval between checkpoints where they say nothing."""
        given = {field.name for field in fields(options)}
        same = {f.name: getattr(options, f.name) for f in fields(cls) if f.name in given}
        least, most = options.worker_range
        settled = {
            "workers": most,
            "min_workers": least,
            "checkpoints": options.settled_checkpoints,
            "checkpoint_every": options.checkpoint_every or checkpoint_every,
            "cache": str(options.cache.resolve()) if options.cache else "",
        }
        return cls(**{**same, **settled})

    @property
    def fewest(self) -> int:
        """Workers that it cannot do without."""
        return self.min_workers or self.workers

    @property
    def each(self) -> dict[str, float]:
        """What one worker holds, by Ray's names."""
        return {"CPU": float(self.threads)} | ({"GPU": 1.0} if self.device == "cuda" else {})


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training. ``settings`` decide the result, the rest does not."""

    kind: Kind
    run: str  # run directory
    data: str  # shard directory, or its URI
    settings: Settings
    inputs: Inputs = field(default_factory=Inputs)
    runtime: Runtime = field(default_factory=Runtime)
    extend_to: int = 0  # steps in all, where they are more than the settings'

    @property
    def model(self) -> Any:
        """The configuration of the kind's model."""
        return self.settings.model

    @property
    def loss(self) -> Any:
        """The configuration of the kind's loss; None where that has none."""
        return self.settings.loss

    @property
    def optim(self) -> OptimConfig:
        """The optimizer's settings."""
        return self.settings.optim

    @property
    def steps(self) -> int:
        """Optimizer updates in all."""
        return max(self.optim.steps, self.extend_to)

    @property
    def title(self) -> str:
        """What a person calls it: "tokenizer", "transformer markov"."""
        kind, name = self.kind.name, Path(self.run).name
        return kind if name == kind else f"{kind} {name}"

    @property
    def config_hash(self) -> str:
        """Names the settings; a checkpoint carries it."""
        return digest({"kind": self.kind.name, **decisive(self.settings.to_json())})

    @property
    def config(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``config.json`` holds: the settings, and what may differ when a run is resumed."""
        runtime = {"data": self.data, **asdict(self.inputs), **asdict(self.runtime)}
        return self.settings.to_json(), runtime

    def with_optim(self, **values: Any) -> "Job":
        """The job with other values of its optimizer's settings."""
        optim = replace(self.optim, **values)
        return replace(self, settings=replace(self.settings, optim=optim))

    def build_task(self) -> Task:
        """Its task, freshly initialised."""
        return self.kind.build(self.settings, self.inputs)

    def blank_task(self) -> Task:
        """Its task on the meta device: shapes without values. It reads no weights."""
        return self.kind.blank_task(self.settings, self.inputs)

    def store(self) -> Store:
        """The shards, opened on this machine."""
        cache = Path(self.runtime.cache) if self.runtime.cache else None
        return open_store(self.data, cache, self.runtime.cache_gb)

    def dataset(self, split: str) -> ShardDataset:
        """A split, without what was found damaged when the run was started."""
        return ShardDataset(self.store(), split, self.settings.skipped.get(split, {}))

    def to_plain(self) -> dict[str, Any]:
        """The job as JSON values, for Ray Train."""
        return {
            "kind": self.kind.name,
            "run": self.run,
            "data": self.data,
            "settings": self.settings.to_json(),
            "inputs": asdict(self.inputs),
            "runtime": asdict(self.runtime),
            "extend_to": self.extend_to,
        }


def parse_job(plain: Mapping[str, Any]) -> Job:
    """Undo :meth:`Job.to_plain`."""
    kind = KINDS[plain["kind"]]
    parsed = {
        "kind": kind,
        "settings": kind.parse(plain["settings"]),
        "inputs": Inputs(**plain["inputs"]),
        "runtime": Runtime(**plain["runtime"]),
    }
    return Job(**{**plain, **parsed})


def make_job(
    kind: str,
    preset: Preset,
    data: Path | str,
    out: Path,
    options: Options,
    *,
    tokenizer: Path | None = None,
    mask: Mask | None = None,
) -> Job:
    """The job that trains one model of a preset.

    Args:
        kind: a name in ``KINDS``.
        preset: sizes and recipe.
        data: shard directory, or its URI.
        out: run directory.
        options: what differs from the preset; the kind's own may be left out.
        tokenizer: run, model or pipeline directory, for trainings on codes.
        mask: of a transformer; None takes the preset's.

    Raises:
        UserError: data, tokenizer and preset do not fit together, or the kind cannot be sharded.
    """
    chosen = KINDS[kind]
    if options.parallel == "fsdp" and not chosen.sharded:
        raise UserError(f"--parallel fsdp shards a transformer's blocks: train a {kind} with ddp")
    store = open_store(data, options.cache, options.cache_gb)
    _check_resolution(preset.tokenizer.resolution, store.manifest.resolution, data)
    request = Request(
        preset=preset, options=_of_class(chosen.options, options), data=str(data), store=store,
        run=out, tokenizer=tokenizer, mask=mask,
    )  # fmt: skip
    settings, inputs = chosen.plan_job(request)
    return Job(
        kind=chosen, run=str(out.resolve()), data=str(parse_location(str(data), "--data")),
        settings=settings, inputs=inputs,
        runtime=Runtime.of(options, preset.checkpoint_every), extend_to=options.extend_to,
    )  # fmt: skip


def _check_resolution(wanted: int, found: int, data: Path | str) -> None:
    if wanted != found:
        raise UserError(
            f"the preset takes {wanted} px images, {data} holds {found} px ones: prepare them "
            f"with --resolution {wanted}"
        )


def _of_class(kind: type[Options], options: Options) -> Options:
    """Options as those of a kind: what both have, and defaults."""
    if isinstance(options, kind):
        return options
    given = {field.name for field in fields(options)}
    return kind(**{f.name: getattr(options, f.name) for f in fields(kind) if f.name in given})

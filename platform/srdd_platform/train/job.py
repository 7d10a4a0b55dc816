"""What a training is, as a value: its settings and its files."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from srdd.errors import UserError
from srdd.metrics.classifier import ClassifierConfig
from srdd.presets import Preset, var_size
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.validation import to_dict
from srdd.var.config import TransformerConfig
from srdd.var.masks import Mask
from srdd.var.pipeline import load_tokenizer
from srdd_platform.core.files import digest, sha256_file
from srdd_platform.core.location import parse_location
from srdd_platform.core.runs import decisive, tokenizer_dir
from srdd_platform.data.augment import pixel_settings
from srdd_platform.data.code_places import code_settings, codes_dir
from srdd_platform.data.dataset import ShardDataset
from srdd_platform.data.options import CACHE_GB
from srdd_platform.data.store import Store, inspected, open_store
from srdd_platform.evaluation.extractors import check_classes
from srdd_platform.train.init_from import check_init, weights_hash
from srdd_platform.train.options import Options, Parallel, TransformerOptions
from srdd_platform.train.tokenizer_settings import tokenizer_settings

Kind = Literal["tokenizer", "transformer", "classifier"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training. ``settings`` decide the result, the rest does not."""

    kind: Kind
    run: str  # run directory
    data: str  # shard directory, or its URI
    settings: dict[str, Any]  # model, loss, optim (and more by kind), as JSON
    tokenizer: str = ""  # run or model directory, for transformers
    codes: str = ""  # code shards, for transformers
    lpips: tuple[str, ...] = ()  # files with its weights, for tokenizers
    extractor: tuple[str, ...] = ()  # name and weights: of the features behind a tokenizer's rFID
    init_from: str = ""  # pipeline or run directory whose weights a transformer begins with
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
    extend_to: int = 0  # steps in all, where they are more than the settings'
    loader_workers: int = 1  # threads that read and decode ahead
    cache: str = ""  # directory for copies of shards at a URI
    cache_gb: float = CACHE_GB

    @property
    def steps(self) -> int:
        """Optimizer updates in all."""
        return max(int(self.settings["optim"]["steps"]), self.extend_to)

    @property
    def fewest(self) -> int:
        """Workers that it cannot do without."""
        return self.min_workers or self.workers

    @property
    def each(self) -> dict[str, float]:
        """What one worker holds, by Ray's names."""
        return {"CPU": float(self.threads)} | ({"GPU": 1.0} if self.device == "cuda" else {})

    @property
    def runtime(self) -> dict[str, Any]:
        """All that does not decide the result, and may differ when a run is resumed."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("kind", "run", "settings", "extend_to")
        }

    def store(self) -> Store:
        """The shards, opened on this machine."""
        return open_store(self.data, Path(self.cache) if self.cache else None, self.cache_gb)

    def dataset(self, split: str) -> ShardDataset:
        """A split, without what was found damaged when the run was started."""
        return ShardDataset(self.store(), split, self.settings.get("skipped", {}).get(split, {}))

    @property
    def config_hash(self) -> str:
        """Names the settings; a checkpoint carries it."""
        return digest({"kind": self.kind, **decisive(self.settings)})


def make_job(
    kind: Kind,
    preset: Preset,
    data: Path | str,
    out: Path,
    options: Options,
    *,
    tokenizer: Path | None = None,
    mask: Mask = "markov",
) -> Job:
    """The job that trains one model of a preset.

    Raises:
        UserError: data, tokenizer and preset do not fit together, or the kind cannot be sharded.
    """
    if options.parallel == "fsdp" and kind != "transformer":
        raise UserError(f"--parallel fsdp shards a transformer's blocks: train a {kind} with ddp")
    store = open_store(data, options.cache, options.cache_gb)
    manifest = store.manifest
    if manifest.resolution != preset.tokenizer.resolution:
        raise UserError(
            f"the preset takes {preset.tokenizer.resolution} px images, {data} holds "
            f"{manifest.resolution} px ones: prepare them with --resolution "
            f"{preset.tokenizer.resolution}"
        )
    num_classes = len(manifest.classes)
    if kind == "classifier":
        check_classes(num_classes, str(data))
    skipped = inspected(store, options.max_bad)
    settings: dict[str, Any]
    codes = ""
    more: dict[str, Any] = {}
    if kind == "tokenizer":
        settings, more = tokenizer_settings(preset, options)
        settings |= pixel_settings(options, manifest)
    elif kind == "classifier":
        model = ClassifierConfig(num_classes=num_classes, resolution=manifest.resolution)
        settings = {
            "model": to_dict(model),
            "optim": to_dict(options.apply(preset.classifier_optim)),
            **pixel_settings(options, manifest),
        }
    else:
        assert tokenizer is not None
        own = options if isinstance(options, TransformerOptions) else TransformerOptions()
        views = code_settings(own, own.views)
        codes = str(
            codes_dir(
                store,
                tokenizer,
                views=own.views,
                flip=own.flip,
                skipped=skipped,
                place=own.codes,
                run=out,
            ).resolve()
        )
        frozen_tokenizer = load_tokenizer(tokenizer_dir(tokenizer))
        frozen = frozen_tokenizer.config
        unconditional = own.unconditional or manifest.unconditional
        sized = preset.transformer
        if own.depth is not None:
            sized = var_size(sized, own.depth)
        model_config = replace(
            sized, mask=mask, unconditional=unconditional,
            num_classes=1 if unconditional else num_classes,
            patch_nums=frozen.patch_nums, parent=frozen.parent, vocab_size=frozen.vocab_size,
            z_channels=frozen.z_channels, num_phi=frozen.num_phi,
        )  # fmt: skip
        settings = transformer_settings(
            model_config,
            own.apply_loss(preset.transformer_loss),
            options.apply(preset.transformer_optim),
            preset.init_gate,
        )
        settings |= views
        if own.teacher_kl and not own.init_from:
            raise UserError("--teacher-kl needs a teacher: give --init-from")
        if own.init_from:
            check_init(own.init_from, model_config, frozen_tokenizer)
            settings["init"] = weights_hash(own.init_from)
            more["init_from"] = str(own.init_from.resolve())
        settings["tokenizer"] = sha256_file(tokenizer_dir(tokenizer) / "model.safetensors")
    settings["data"] = manifest.fingerprint
    if skipped:
        settings["skipped"] = skipped
    return Job(
        kind=kind,
        run=str(out.resolve()),
        data=str(parse_location(str(data), "--data")),
        settings=settings,
        tokenizer=str(tokenizer.resolve()) if tokenizer else "",
        codes=codes,
        workers=options.worker_range[1],
        min_workers=options.worker_range[0],
        max_failures=options.max_failures,
        wait_for_resources=options.wait_for_resources,
        checkpoints=options.settled_checkpoints,
        keep_checkpoints=options.keep_checkpoints,
        parallel=options.parallel,
        device=options.device,
        threads=options.threads,
        checkpoint_every=options.checkpoint_every or preset.checkpoint_every,
        validate_every=options.validate_every,
        grid_every=options.grid_every,
        extend_to=options.extend_to,
        loader_workers=options.loader_workers,
        cache=str(options.cache.resolve()) if options.cache else "",
        cache_gb=options.cache_gb,
        **more,
    )


def title(job: Job) -> str:
    """What a person calls a job: "tokenizer", "transformer markov"."""
    name = Path(job.run).name
    return job.kind if name == job.kind else f"{job.kind} {name}"


def transformer_settings(
    model: TransformerConfig, loss: TransformerLossConfig, optim: OptimConfig, init_gate: float
) -> dict[str, Any]:
    """The settings of a transformer's job."""
    return {
        "model": to_dict(model),
        "loss": to_dict(loss),
        "optim": to_dict(optim),
        "init_gate": init_gate,
    }

"""Options of every sweep."""

from dataclasses import dataclass
from pathlib import Path

from srdd.devices import check_dtype
from srdd.errors import UserError
from srdd_platform.evaluation.protocol import MIN_IMAGES
from srdd_platform.sweep.definition import Sweep


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepArgs:
    """Options of every sweep. With none at all the digits preset runs from data to report."""

    out: Path | None = None  # sweep directory; default runs/<preset>/<sweep>
    model: Path | None = None  # search this pipeline instead of training the preset's
    data: Path | None = None  # its shards (srdd data prepare); needed with --model
    extractor: str = "classifier"  # whose features are compared: classifier or inception
    weights: Path | None = None  # the extractor's; without, a classifier is trained on the data
    trials: int | None = None  # distinct rows; default the script's; more extend a finished sweep
    num: int = 1000  # images a row, the same number of each class
    seed: int = 0
    preset: str = "digits"
    address: str | None = None  # an existing Ray cluster (host:port or auto); else a local one
    slots: int | None = None  # trials at once; default one a CPU, or one a GPU
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 250  # images drawn at once

    def __post_init__(self) -> None:
        for name in ("trials", "num", "batch_size", "slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {value}")
        if self.num < MIN_IMAGES:
            raise UserError(f"--num must be at least {MIN_IMAGES}, got {self.num}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed must lie in [0, 2**32), got {self.seed}")
        check_dtype(self.dtype)
        if self.device != "cpu" and not self.device.startswith("cuda"):
            raise UserError(f"--device must be cpu or cuda, got {self.device!r}")
        if (self.model is None) != (self.data is None):
            raise UserError("--model and --data go together: the model and its prepared images")
        if self.model is None and self.weights is not None:
            raise UserError("--weights goes with --model and --data")
        if self.extractor not in ("classifier", "inception"):
            raise UserError(f"--extractor must be classifier or inception, got {self.extractor!r}")
        if self.extractor == "inception" and self.weights is None:
            raise UserError("--extractor inception needs --weights FILE")
        for name in ("model", "data", "weights"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise UserError(f"--{name} {path} does not exist")


@dataclass(frozen=True, slots=True)
class Request:
    """A sweep that is asked for: what is searched, and with which options."""

    sweep: Sweep
    args: SweepArgs

    @property
    def directory(self) -> Path:
        """The sweep's: as given, or its name beside the models that it searches."""
        beside = self.args.model.name if self.args.model else self.args.preset
        return self.args.out or Path("runs") / beside / self.sweep.name

    @property
    def trials(self) -> int:
        """Distinct rows to make."""
        return self.sweep.trials if self.args.trials is None else self.args.trials

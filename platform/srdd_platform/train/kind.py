"""What a kind of training is, and what a training of it is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from srdd.presets import Preset
from srdd.train.config import OptimConfig
from srdd.train.task import Task
from srdd.validation import from_dict, to_dict
from srdd.var.masks import Mask
from srdd.var.warm_start import WarmStart
from srdd_platform.data.damage import Skipped
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.store import Store, inspected
from srdd_platform.train.options import Options


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What decides the result of a training; ``config.json`` holds it as JSON."""

    model: Any  # the configuration of the kind's model
    optim: OptimConfig
    loss: Any = None  # of the kind's loss, if that has one
    more: Mapping[str, Any] = field(default_factory=dict)  # the kind's own, as JSON
    data: str = ""  # the fingerprint of the data's manifest
    skipped: Mapping[str, Skipped] = field(default_factory=dict)  # damaged samples, by split

    def to_json(self) -> dict[str, Any]:
        """As ``config.json`` holds it."""
        loss = {} if self.loss is None else {"loss": to_dict(self.loss)}
        data = {"data": self.data} if self.data else {}
        skipped = {"skipped": dict(self.skipped)} if self.skipped else {}
        own = {"model": to_dict(self.model), **loss, "optim": to_dict(self.optim)}
        return {**own, **self.more, **data, **skipped}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Files that a training reads beside its data. They may be moved between two starts."""

    tokenizer: str = ""  # run or model directory, for trainings on codes
    codes: str = ""  # code shards
    lpips: tuple[str, ...] = ()  # files with its weights, for tokenizers
    extractor: tuple[str, ...] = ()  # name and weights: of the features behind a tokenizer's rFID
    init_from: str = ""  # pipeline or run directory whose weights a training begins with


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for: a preset's model of a kind, on some data."""

    preset: Preset
    options: Options  # of the kind's class
    data: str  # shard directory or its URI, as it was given
    store: Store
    run: Path
    tokenizer: Path | None = None
    mask: Mask | None = None

    @property
    def manifest(self) -> Manifest:
        """The data's."""
        return self.store.manifest

    @cached_property
    def skipped(self) -> dict[str, dict[str, int]]:
        """Damaged samples, by split, found by looking at all of the data once.

        Raises:
            UserError: they are too many.
        """
        return inspected(self.store, self.options.max_bad)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of training: what of it the rest of the package asks, beside its task.

    A new one is a file in :mod:`srdd_platform.train.kinds` and an entry of its ``KINDS``.
    """

    name: str
    model: type[Any]  # the class of the model's configuration
    loss: type[Any] | None = None
    options: type[Options] = Options
    reads: Literal["images", "codes"] = "images"
    plan: Callable[[Request], tuple[Settings, Inputs]]  # without the data's part of the settings
    build: Callable[[Settings, Inputs], Task]  # freshly initialised
    blank: Callable[[Settings, Inputs], Task] | None = None  # reads no weights; None: as ``build``
    begin: Callable[[Task, Path], WarmStart] | None = None  # takes weights of a directory
    costliest: Callable[[Settings], Settings] = lambda settings: settings  # of any of its updates
    sharded: bool = False  # --parallel fsdp
    recomputes: bool = False  # --recompute

    def plan_job(self, request: Request) -> tuple[Settings, Inputs]:
        """The settings and inputs of a training.

        Raises:
            UserError: what is asked for does not fit together.
        """
        settings, inputs = self.plan(request)
        data = request.manifest.fingerprint
        return replace(settings, data=data, skipped=request.skipped), inputs

    def blank_task(self, settings: Settings, inputs: Inputs) -> Task:
        """A task on the meta device: shapes without values."""
        with torch.device("meta"):
            return (self.blank or self.build)(settings, inputs)

    def parse(self, values: Mapping[str, Any]) -> Settings:
        """Undo :meth:`Settings.to_json`.

        Raises:
            UserError: a setting is unknown, missing, of the wrong type or out of range.
        """
        more = dict(values)
        return Settings(
            model=from_dict(self.model, more.pop("model"), self.name),
            optim=from_dict(OptimConfig, more.pop("optim"), "optim"),
            loss=None if self.loss is None else from_dict(self.loss, more.pop("loss"), "loss"),
            data=more.pop("data", ""),
            skipped=more.pop("skipped", {}),
            more=more,
        )

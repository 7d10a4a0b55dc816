"""The arms of the sampling benchmark: each draws its own way, from the same weights.

An arm is written ``base[+accelerator][:dtype]``:

    official      VAR's own loop (needs a checkout); autocast below fp32, as its demo runs it
    plain         the plain loop: what the official one does, written on our weights
    causal        ours, VAR's mask
    markov        ours, SDD's mask
    pruned-N      markov over the size's pruned schedule of N scales
    srdd-T        markov with T refinement passes of masked resampling
    epsilon       markov with epsilon truncation at the resampling threshold

and the accelerator is ``int8``, ``compile`` or ``graph`` (CUDA graphs).
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import srdd
from benchmarks import official, plain_var
from benchmarks.command import DTYPES
from benchmarks.memory import storage_bytes, weight_bytes
from benchmarks.sizes import Size
from benchmarks.weights import random_pipeline, with_mask
from srdd import Pipeline, SamplerConfig
from srdd.errors import UserError
from srdd.graph import GraphedSampler
from srdd.var.accelerate import compile_blocks, int8_linears
from srdd.var.cost import decoder_flops
from srdd.var.masks import Mask
from srdd.var.state import SampleState

ACCELERATORS = ("int8", "compile", "graph")
TOP_P, THRESHOLD = 0.96, 0.01


class SkipArmError(Exception):
    """This arm cannot run here; the message says why."""


class ArmFailedError(SkipArmError):
    """This arm should run here, and broke when it was made ready."""


@dataclass(frozen=True, slots=True)
class ArmName:
    """An arm, taken apart."""

    base: str
    accelerator: str  # "" for none
    dtype: str

    @classmethod
    def parse(cls, text: str, ours: str, official_dtype: str) -> "ArmName":
        """Take an arm's name apart.

        Raises:
            UserError: there is no such arm.
        """
        rest, _, dtype = text.partition(":")
        base, _, accelerator = rest.partition("+")
        kind, _, number = base.partition("-")
        numbered = kind in ("pruned", "srdd") and number.isdecimal()
        known = numbered or base in ("official", "plain", "causal", "markov", "epsilon")
        theirs = base in ("official", "plain")
        if not known or (accelerator and (theirs or accelerator not in ACCELERATORS)):
            raise UserError(f"no arm {text!r}: see --help")
        dtype = dtype or (official_dtype if theirs else ours)
        if dtype not in DTYPES:
            raise UserError(f"arm {text!r}: the dtype must be one of {', '.join(DTYPES)}")
        return cls(base, accelerator, dtype)

    @property
    def mask(self) -> Mask:
        """The mask of the model behind it."""
        return "block_causal" if self.base in ("official", "plain", "causal") else "markov"

    def __str__(self) -> str:
        accelerated = f"+{self.accelerator}" if self.accelerator else ""
        return f"{self.base}{accelerated}:{self.dtype}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a call told of itself."""

    nfe: float
    gflops: float | None  # an image; None where the loop does not count
    cache_bytes: int


class Lab:
    """The weights of a run, and its arms on them."""

    def __init__(
        self, size: Size, device: torch.device, var_repo: Path | None, cfg: float, seed: int
    ) -> None:
        self.size, self.device, self.cfg = size, device, cfg
        self.base = random_pipeline(size, device, seed)
        self.official: official.Official | None = None
        self.no_official = "no checkout of FoundationVision/VAR: --var-repo or SRDD_VAR_REPO"
        if var_repo is not None:
            self.official = official.load(var_repo, size, self.base)
        self._pipelines: dict[tuple[Mask, str], Pipeline] = {("block_causal", "fp32"): self.base}
        self._accelerated: dict[tuple[Mask, str, str], Pipeline] = {}

    def inputs(self, batch: int) -> tuple[Tensor, Tensor]:
        """Labels and seeds of a batch."""
        rows = torch.arange(batch, device=self.device)
        return rows * 37 % self.size.num_classes, rows

    def pipeline(self, mask: Mask, dtype: str) -> Pipeline:
        """Our pipeline; its weights are copied only for another dtype."""
        if (mask, dtype) not in self._pipelines:
            if dtype == "fp32":
                made = with_mask(self.base, self.size, mask)
            elif mask == "block_causal":
                made = copy.deepcopy(self.base).to(self.device, DTYPES[dtype])
            else:
                made = with_mask(self.pipeline("block_causal", dtype), self.size, mask)
            self._pipelines[mask, dtype] = made
        return self._pipelines[mask, dtype]

    def config(self, name: ArmName) -> SamplerConfig:
        """An arm's sampler settings.

        Raises:
            UserError: the size has no pruned schedule of that length.
        """
        base = SamplerConfig(cfg=self.cfg, top_k=self.size.top_k, top_p=TOP_P)
        kind, _, number = name.base.partition("-")
        if kind == "pruned":
            schedules = {len(sides): sides for sides in self.size.pruned}
            if int(number) not in schedules:
                known = ", ".join(f"pruned-{n}" for n in schedules)
                raise UserError(f"size {self.size.name} has no {name.base}, but {known}")
            return dataclasses.replace(base, patch_nums=schedules[int(number)])
        if kind == "srdd":
            steps = int(number)
            return dataclasses.replace(base, refine_steps=steps, resample_threshold=THRESHOLD)
        return dataclasses.replace(base, epsilon=THRESHOLD) if kind == "epsilon" else base

    def prepare(self, name: ArmName, batch: int, decode: bool) -> Callable[[], object]:
        """A call that draws one batch.

        Raises:
            SkipArmError: the arm cannot run here.
        """
        labels_B, seeds_B = self.inputs(batch)
        if name.base == "official":
            return self._official(name, labels_B, decode)
        if name.base == "plain":
            model = plain_var.plain(self.base)

            def run() -> object:
                with torch.inference_mode(), self.autocast(name.dtype):
                    return plain_var.draw(
                        model, labels_B, self.cfg, self.size.top_k, TOP_P, decoded=decode
                    )

            return run
        config = self.config(name)
        if name.accelerator == "graph":
            if not decode:
                raise SkipArmError("a graphed sampler always decodes")
            graphed = self._graphed(name, config, batch)
            return lambda: graphed(labels_B, seeds_B)
        pipeline = self._ours(name)
        if decode:
            return lambda: srdd.sample(pipeline, labels_B, config, seeds_B)
        return lambda: undecoded(pipeline, labels_B, config, seeds_B)

    def autocast(self, dtype: str) -> contextlib.AbstractContextManager[Any]:
        """The context in which VAR's loop runs at a dtype."""
        if dtype == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[dtype])

    def weights(self, name: ArmName) -> int:
        """Bytes of an arm's weights."""
        if name.base == "official":
            assert self.official is not None
            return weight_bytes(self.official.vae, self.official.var)
        pipeline = self.base if name.base == "plain" else self._ours(name)
        return weight_bytes(pipeline.tokenizer, pipeline.transformer)

    def decoder_dtype(self, name: ArmName) -> str:
        """The dtype that an arm decodes in."""
        if name.base in ("official", "plain"):
            return name.dtype
        dtype = self.pipeline(name.mask, name.dtype).tokenizer.post_quant_conv.weight.dtype
        return next(text for text, known in DTYPES.items() if known == dtype)

    def facts(self, name: ArmName, batch: int) -> Facts:
        """Evaluations, operations and cache of an arm, from one more call without the decoder."""
        labels_B, seeds_B = self.inputs(batch)
        scales = len(self.size.patch_nums)
        if name.base == "official":
            assert self.official is not None
            with official.cache_sizes(self.official) as sizes:
                self._official(name, labels_B, decode=False)()
            return Facts(2.0 * scales, None, sum(sizes))
        if name.base == "plain":
            rows = 2 * batch * self.size.transformer("markov").schedule.length
            kept = 8 if name.dtype == "fp32" else 6  # a key and a value; autocast norms in float32
            return Facts(2.0 * scales, None, kept * rows * 64 * self.size.depth**2)
        pipeline = self._ours(name)
        state = undecoded(pipeline, labels_B, self.config(name), seeds_B)
        flops = state.cost.flops_B.double().mean().item() - decoder_flops(pipeline.tokenizer.config)
        return Facts(state.cost.nfe_B.double().mean().item(), flops / 1e9, cache_bytes(state))

    def greedy(self, name: ArmName, batch: int) -> Tensor:
        """An arm's likeliest codes."""
        labels_B, seeds_B = self.inputs(batch)
        config = SamplerConfig(cfg=self.cfg, top_k=1)
        if name.accelerator == "graph":
            return self._graphed(name, config, batch)(labels_B, seeds_B).codes_BL
        return undecoded(self._ours(name), labels_B, config, seeds_B).codes_BL

    def reference_codes(self, mask: Mask, batch: int) -> Tensor:
        """The likeliest codes of VAR's loop, or of the plain one, in float32."""
        labels_B, _ = self.inputs(batch)
        if (theirs := self.official) is not None:
            with official.masked(theirs, self.size, mask), official.without_decoder(theirs):
                return official.greedy(theirs, labels_B, self.cfg).codes_BL
        model = plain_var.plain(self.pipeline(mask, "fp32"))
        drawn = plain_var.draw(model, labels_B, self.cfg, 1, 0.0, decoded=False)
        return drawn.greedy.codes_BL

    def _official(self, name: ArmName, labels_B: Tensor, decode: bool) -> Callable[[], object]:
        theirs = self.official
        if theirs is None:
            raise SkipArmError(self.no_official)

        def run() -> object:
            cut = contextlib.nullcontext() if decode else official.without_decoder(theirs)
            with torch.inference_mode(), self.autocast(name.dtype), cut:
                return official.draw(theirs, labels_B, self.cfg, self.size.top_k, TOP_P)

        return run

    def _ours(self, name: ArmName) -> Pipeline:
        key = (name.mask, name.dtype, name.accelerator)
        accelerate = {"int8": int8_linears, "compile": compile_blocks}.get(name.accelerator)
        if accelerate is None:
            return self.pipeline(name.mask, name.dtype)
        if key not in self._accelerated:
            with _making():
                self._accelerated[key] = accelerate(self.pipeline(name.mask, name.dtype))
        return self._accelerated[key]

    def _graphed(self, name: ArmName, config: SamplerConfig, batch: int) -> GraphedSampler:
        with _making():
            return GraphedSampler(self.pipeline(name.mask, name.dtype), config, batch)


@contextlib.contextmanager
def _making() -> Iterator[None]:
    """An arm that cannot be made here is left out; one that breaks has failed."""
    try:
        yield
    except (UserError, NotImplementedError) as error:
        raise SkipArmError(str(error).strip().splitlines()[0]) from None
    except RuntimeError as error:  # out of memory too
        raise ArmFailedError(str(error).strip().splitlines()[0]) from None


def undecoded(
    pipeline: Pipeline, labels_B: Tensor, config: SamplerConfig, seeds_B: Tensor
) -> SampleState:
    """Draw all codes and leave the map undecoded."""
    state = pipeline.begin(labels_B, config, seeds_B)
    while state.step < state.num_steps:
        state = pipeline.advance(state)
    return state


def cache_bytes(state: SampleState) -> int:
    """Bytes of the keys and values that a state holds."""
    return storage_bytes(
        tensor
        for field in dataclasses.fields(state)
        if "cache" in field.name
        for tensor in _tensors(getattr(state, field.name))
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)

"""A pipeline: tokenizer, transformer, sampler settings and class names, in one directory.

::

    tokenizer/config.json, model.safetensors
    transformer/config.json, model.safetensors
    sampler.json    a SamplerConfig
    classes.json    the class names, in label order
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from srdd.checkpoint import build_empty, load_weights, read_config, save_model
from srdd.class_names import find, find_all, readable
from srdd.errors import UserError
from srdd.generator import Card, Given
from srdd.images import to_float, to_uint8
from srdd.pipeline_files import (
    read_class_names,
    read_sampler,
    write_class_names,
    write_sampler,
)
from srdd.var import sampling
from srdd.var.checks import check_given, check_request, check_settings
from srdd.var.config import SamplerConfig, TokenizerConfig, TransformerConfig
from srdd.var.init import init_weights
from srdd.var.plan import make_plan
from srdd.var.state import SampleState
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

_FAMILY = {"markov": "SDD", "block_causal": "VAR"}  # the paper's names


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Everything that draws images."""

    tokenizer: Tokenizer
    transformer: ScaleTransformer
    sampler: SamplerConfig
    class_names: tuple[str, ...]  # in label order; brought to their one form when it is made

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(readable, self.class_names)))
        check_match(self.tokenizer, self.transformer)
        self.tokenizer.prepare()
        if len(self.class_names) != self.transformer.config.num_classes:
            raise UserError(
                f"{len(self.class_names)} class names for "
                f"{self.transformer.config.num_classes} classes"
            )

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Pipeline":
        """Move to a device, transformer and decoder to a dtype; returns self.

        Linear head, codebook and the sums of the map stay in float32, and so does the encoder;
        on CUDA torch may take TF32 for float32 convolutions (``torch.backends.cudnn``).
        """
        self.tokenizer.to(device)
        self.transformer.to(device)
        if dtype is not None:
            self.tokenizer.decoder.to(dtype)
            self.tokenizer.post_quant_conv.to(dtype)
            for name, parameter in self.transformer.named_parameters():
                if not name.startswith(("quantizer.", "head.")):
                    parameter.data = parameter.data.to(dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.transformer.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, apart from the sums of :meth:`to`."""
        return self.transformer.pos_embed.dtype

    @property
    def card(self) -> Card:
        """What the model is."""
        mask = self.transformer.config.mask
        return Card(
            family="var",
            name=f"{_FAMILY.get(mask, mask)} ({mask})",
            class_names=self.class_names,
            resolution=self.tokenizer.config.resolution,
            unconditional=self.transformer.config.unconditional,
            tags={"mask": mask},
            defaults={"patch_nums": self.transformer.schedule.patch_nums},
        )

    def check_settings(self, config: SamplerConfig) -> None:
        """Refuse settings that do not fit the model.

        Raises:
            UserError: a scale is unknown, top_k too large, or there is nothing to guide.
        """
        check_settings(self.transformer.config, config)

    def begin(
        self,
        labels_B: Tensor | Sequence[int],
        config: SamplerConfig,
        seeds_B: Tensor | Sequence[int],
        given: Given | None = None,
    ) -> SampleState:
        """The state before the first scale.

        Given codes are those of the scales visited, and are never drawn again. Later scales see
        them; the codes drawn at their own scale see them in refinement alone. A scale that is
        given whole, for all images, is not evaluated unless a scale to be drawn attends to it.

        Raises:
            UserError: a class, a seed count, a setting or a code does not fit the model.
        """
        labels_B, seeds_B = self.check_request(labels_B, config, seeds_B)
        if given is not None:
            given = check_given(self.transformer.config, config, given, len(labels_B))
            given = Given(given.codes_BL.to(self.device), given.keep_BL.to(self.device))
        return self.start(labels_B.to(self.device), config, seeds_B.to(self.device), given)

    def check_request(
        self,
        labels_B: Tensor | Sequence[int],
        config: SamplerConfig,
        seeds_B: Tensor | Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Labels and seeds as int64 [B].

        Raises:
            UserError: a class, a seed count or a setting does not fit the model.
        """
        return check_request(self.transformer, labels_B, config, seeds_B)

    def start(
        self,
        labels_B: Tensor,
        config: SamplerConfig,
        seeds_B: Tensor,
        given: Given | None = None,
    ) -> SampleState:
        """:meth:`begin`, of what is on the device and known to fit.

        It does not wait for the device, unless there are given codes.
        """
        plan = make_plan(self.transformer.config, self.tokenizer.config, config, given)
        return sampling.begin(self.transformer, plan, labels_B, seeds_B, given)

    def advance(self, state: SampleState) -> SampleState:
        """Draw the next scale; see :func:`srdd.var.sampling.advance`."""
        return sampling.advance(self.transformer, state)

    def decode(self, state: SampleState) -> Tensor:
        """The images at any scale: [B, 3, R, R] in [0, 1].

        Raises:
            FloatingPointError: the network gave logits that are not finite.
        """
        self.check_finite(state)
        return self.pixels(state)

    def check_finite(self, state: SampleState) -> None:
        """Refuse a state of which logits were not finite; see :func:`sampling.check_finite`.

        Raises:
            FloatingPointError: the scale and, in a refinement, the pass are named.
        """
        sampling.check_finite(state)

    def pixels(self, state: SampleState) -> Tensor:
        """The images at any scale, unchecked: [B, 3, R, R] in [0, 1]."""
        return self.tokenizer.decode_latent(state.f_hat).add_(1).mul_(0.5)

    def check_capture(self, config: SamplerConfig) -> None:
        """Refuse settings that refine: how often depends on the codes drawn.

        Raises:
            UserError: they do.
        """
        if config.active()["refine_steps"]:
            raise UserError("a CUDA graph needs a fixed loop: set refine_steps to 0")

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """What the tokenizer's codes keep of images: uint8 [n, 3, R, R] -> uint8, on its device.

        Raises:
            UserError: the images have another size.
        """
        codes_nL = self.tokenizer.encode(to_float(images.to(self.device)))
        return to_uint8(self.tokenizer.decode(codes_nL).add(1).mul(0.5))

    def untrained(self, seed: int = 0) -> "Pipeline":
        """The same pipeline, on the same device, with a transformer that was never trained.

        Args:
            seed: of the weights; torch's own generator is left as it is.
        """
        trained = self.transformer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = ScaleTransformer(trained.config)
            init_weights(fresh)
        fresh.quantizer.load_state_dict(trained.quantizer.state_dict())
        fresh.to(self.device).eval().requires_grad_(False)
        for parameter, like in zip(fresh.parameters(), trained.parameters(), strict=True):
            parameter.data = parameter.data.to(like.dtype)
        return replace(self, transformer=fresh)

    def label(self, text: str) -> int:
        """The class that a name or an index means; see :mod:`srdd.class_names` for the rules.

        Raises:
            UserError: there is no such class, or several have this name.
        """
        return find(self.class_names, text)

    def labels(self, text: str) -> list[int]:
        """The classes that a comma-separated list means, by the same rules.

        Raises:
            UserError: a part of the list means no class, or several.
        """
        return find_all(self.class_names, text)


def check_match(tokenizer: Tokenizer, transformer: ScaleTransformer) -> None:
    """Refuse a transformer whose frozen codebook and phi are not the tokenizer's.

    Raises:
        UserError: the two copies differ.
    """
    own, frozen = tokenizer.quantizer.state_dict(), transformer.quantizer.state_dict()
    same = tokenizer.schedule == transformer.schedule and own.keys() == frozen.keys()
    if not same or not all(torch.equal(own[name].float(), frozen[name].float()) for name in own):
        raise UserError("the transformer was trained for another tokenizer: codebook or phi differ")


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write a tokenizer's model directory."""
    save_model(directory, "tokenizer", tokenizer.config, tokenizer.state_dict())


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load a tokenizer's model directory, in eval mode.

    Raises:
        UserError: the directory is missing, damaged or of another kind.
    """
    config = read_config(directory, "tokenizer", TokenizerConfig)
    tokenizer = load_weights(build_empty(Tokenizer, config), directory)
    return tokenizer.eval().prepare().requires_grad_(False)


def save_pipeline(pipeline: Pipeline, directory: Path) -> None:
    """Write a pipeline directory."""
    save_tokenizer(pipeline.tokenizer, directory / "tokenizer")
    model = pipeline.transformer
    save_model(directory / "transformer", "transformer", model.config, model.state_dict())
    write_sampler(directory, pipeline.sampler)
    write_class_names(directory, pipeline.class_names)


def load(directory: Path) -> Pipeline:
    """Load a pipeline directory, in eval mode, on the CPU.

    Raises:
        UserError: it is damaged or of another kind, or its parts do not fit together.
    """
    config = read_config(directory / "transformer", "transformer", TransformerConfig)
    model = load_weights(build_empty(ScaleTransformer, config), directory / "transformer")
    return Pipeline(
        tokenizer=load_tokenizer(directory / "tokenizer"),
        transformer=model.eval().requires_grad_(False),
        sampler=read_sampler(directory, SamplerConfig),
        class_names=read_class_names(directory),
    )

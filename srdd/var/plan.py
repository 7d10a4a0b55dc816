"""What sampling does at each scale, decided before the first one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from srdd.generator import Given
from srdd.var import guidance
from srdd.var.config import Feedback, SamplerConfig, TokenizerConfig, TransformerConfig
from srdd.var.cost import increment_flops, pass_flops
from srdd.var.feedback import FEEDBACK
from srdd.var.masks import AttentionSpan, attention_spans


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePlan:
    """What sampling does at one scale."""

    side: int  # the scale has side x side codes
    span: AttentionSpan  # its place in the sequence of all codes, and what it attends to
    known: int  # its index among the model's scales, for its positions and its level
    parent: int  # its index in the parent schedule, for its random numbers
    drawn: bool  # False: its codes are given for all images
    weight: float  # of guidance
    halves: int  # of the first evaluation: 1 with the class, 2 also without it, 0 does not run
    flops: int  # of an image: the first evaluation, and adding the codes to the map
    passes: int  # of refinement, at most
    feedback: Feedback  # what a pass is shown
    pass_halves: int  # of a pass's evaluation; 0: it draws from the first one
    pass_flops: int  # of an image: a pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What sampling does: made once, carried by the state."""

    config: SamplerConfig
    scales: tuple[ScalePlan, ...]  # those visited, coarse to fine
    tokenizer: TokenizerConfig  # of the decoder, whose cost is the images'

    @property
    def halves(self) -> int:
        """1, or 2 where there is guidance at all: the class, and no class."""
        return 2 if self.config.cfg > 0 else 1

    @property
    def length(self) -> int:
        """L, the codes of all scales visited."""
        return self.scales[-1].span.end

    @property
    def looks_back(self) -> bool:
        """Whether a scale attends to earlier ones, so that keys and values are kept."""
        return any(scale.span.first != scale.span.begin for scale in self.scales)


def make_plan(
    model: TransformerConfig,
    tokenizer: TokenizerConfig,
    config: SamplerConfig,
    given: Given | None = None,
) -> Plan:
    """The plan for settings that are known to fit the model.

    A scale of which ``given`` keeps every code [B, L] is not drawn; reading that waits for the
    device.
    """
    schedule = model.schedule.visit(config.patch_nums)
    spans, sides = attention_spans(model.mask, schedule), schedule.patch_nums
    drawn = [given is None or not given.keep_BL[:, s.begin : s.end].all() for s in spans]
    ramp = guidance.weights(config, schedule)
    weights = [weight if own else 0.0 for weight, own in zip(ramp, drawn, strict=True)]
    halves = _first_halves(spans, weights, drawn)
    passes, increment = config.active()["refine_steps"], increment_flops(model)
    scales = []
    for scale, (side, parent) in enumerate(zip(sides, schedule.parent_index, strict=True)):
        feedback: Feedback = config.feedback if scale else "none"  # the first sees no map
        pass_halves = 0 if FEEDBACK[feedback] is None else 2 if weights[scale] else 1
        flops = partial(_flops, model, spans[scale])
        scales.append(
            ScalePlan(
                side=side,
                span=spans[scale],
                known=model.patch_nums.index(side),
                parent=parent,
                drawn=drawn[scale],
                weight=weights[scale],
                halves=halves[scale],
                flops=flops(halves[scale], first=scale == 0, head=drawn[scale]) + increment,
                passes=passes if drawn[scale] else 0,
                feedback=feedback,
                pass_halves=pass_halves,
                pass_flops=flops(pass_halves) + increment if pass_halves else 0,
            )
        )
    return Plan(config=config, scales=tuple(scales), tokenizer=tokenizer)


def _flops(
    model: TransformerConfig,
    span: AttentionSpan,
    halves: int,
    *,
    first: bool = False,
    head: bool = True,
) -> int:
    """One evaluation of the network on one scale of one image; 0 halves cost nothing."""
    if halves == 0:
        return 0
    shape = (span.end - span.begin, span.end - span.first)
    return pass_flops(model, *shape, guided=halves == 2, first=first, head=head)


def _first_halves(
    spans: Sequence[AttentionSpan], weights: Sequence[float], drawn: Sequence[bool]
) -> list[int]:
    """The halves of each scale's first evaluation.

    A scale that a later one attends to runs at least as many halves as that one, which reads its
    keys and values in each. A scale that is given, and that no other needs, does not run.
    """
    halves = [
        (2 if weight else 1) if own else 0 for weight, own in zip(weights, drawn, strict=True)
    ]
    for scale in reversed(range(len(spans))):
        for earlier in range(scale):
            if spans[earlier].begin >= spans[scale].first:
                halves[earlier] = max(halves[earlier], halves[scale])
    return halves

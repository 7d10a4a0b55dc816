"""Sampling scale by scale, with guidance and refinement.

:func:`begin` makes the state before the first scale and :func:`advance` does the next one, by the
:class:`~srdd.var.plan.Plan` that the state carries. A state can be selected from, joined with
others and continued, which is how a server lets requests join and leave between scales.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from srdd.generator import Given
from srdd.rng import Stream, uniform
from srdd.var import guidance
from srdd.var.attention import KVCache
from srdd.var.categorical import Categorical
from srdd.var.config import SamplerConfig
from srdd.var.cost import conditioning_flops
from srdd.var.feedback import FEEDBACK
from srdd.var.plan import Plan
from srdd.var.resample import RESAMPLE
from srdd.var.state import SampleState
from srdd.var.transformer import Conditioning, ScaleTransformer

_STEPS = 1 << 32  # more passes than any scale has: numbers the evaluations


@torch.no_grad()
def begin(
    model: ScaleTransformer,
    plan: Plan,
    labels_B: Tensor,
    seeds_B: Tensor,
    given: Given | None = None,
) -> SampleState:
    """The state before the first scale. It does not wait for the device.

    Args:
        model: the transformer.
        plan: what to do.
        labels_B: int64, on the device, known to fit.
        seeds_B: int64, on the device.
        given: codes [B, L] on the device, known to fit.
    """
    batch, device, config = len(labels_B), labels_B.device, model.config
    cache = None
    if plan.looks_back:
        head = config.width // config.num_heads
        shape = (config.depth, plan.halves, batch, config.num_heads, head)
        cache = KVCache.empty(shape, plan.length, model.pos_embed)
    side = plan.scales[-1].side
    flops = plan.halves * conditioning_flops(config)
    return SampleState(
        plan=plan,
        step=0,
        seeds_B=seeds_B,
        uniforms_BL=_first_uniforms(plan, seeds_B),
        conditioning=_conditioning(model, labels_B, plan.halves),
        constants=model.constants(),
        f_hat=torch.zeros(batch, config.z_channels, side, side, device=device),
        codes_BL=torch.zeros(batch, 0, dtype=torch.int64, device=device),
        given=given,
        cache=cache,
        nfe_B=torch.zeros(batch, dtype=torch.int64, device="cpu"),
        flops_B=torch.full((batch,), flops, device="cpu"),
        fault_B=torch.zeros(batch, dtype=torch.int64, device=device),
    )


@torch.no_grad()
def advance(model: ScaleTransformer, state: SampleState) -> SampleState:
    """Draw the next scale, refine it, and add it to the map.

    A state is advanced once: where the mask looks back, keys and values go into its own cache. Off
    the CPU and without refinement nothing here waits for the device.

    Raises:
        FloatingPointError: on CPU, as :func:`check_finite`; elsewhere that finds it later.
    """
    scale, config, quantizer = state.scale, state.plan.config, model.quantizer
    nfe_B, flops_B, fault_B = state.nfe_B + scale.halves, state.flops_B + scale.flops, state.fault_B
    codes_Bl, free_Bl = _given(state)

    # Draw the codes from the map of the scales before.
    if scale.halves:
        predicted = _predict(model, state, state.f_hat, first=True)
    if scale.drawn:
        codes_Bl, probs_Bl = predicted.draw(_uniforms(state, 0), config, codes_Bl, free_Bl)
        fault_B = _first_fault(fault_B, probs_Bl, scale.side, 0)
        refined, again = state, predicted

    # Draw some of them again. An image is done when none of its codes is left to draw again.
    for step in range(1, scale.passes + 1):
        redraw_Bl = _candidates(probs_Bl, config, free_Bl)
        rows_b = redraw_Bl.any(1).nonzero()[:, 0]
        if len(rows_b) == 0:
            break
        if len(rows_b) < len(refined):
            refined, again = state.select(rows_b), predicted.select(rows_b)
        own_bl, redraw_bl = codes_Bl[rows_b], redraw_Bl[rows_b]
        if show := FEEDBACK[scale.feedback]:
            shown = quantizer.increment(show(quantizer, own_bl, redraw_bl, scale.side), scale.side)
            again = _predict(model, refined, refined.f_hat + shown, first=False)
        uniforms_bl = _uniforms(refined, step)
        codes_Bl[rows_b], probs_Bl[rows_b] = again.draw(uniforms_bl, config, own_bl, redraw_bl)
        fault_B = _first_fault(fault_B, probs_Bl, scale.side, step)
        counted_b = rows_b.cpu()
        nfe_B[counted_b] += scale.pass_halves
        flops_B[counted_b] += scale.pass_flops

    # Add them to the map.
    f_hat = state.f_hat + quantizer.increment(quantizer.grid(codes_Bl, scale.side), scale.side)
    codes_BL = torch.cat((state.codes_BL, codes_Bl), dim=1)
    done = replace(state, step=state.step + 1, f_hat=f_hat, codes_BL=codes_BL,
                   nfe_B=nfe_B, flops_B=flops_B, fault_B=fault_B)  # fmt: skip
    if fault_B.is_cpu:
        check_finite(done)
    return done


def check_finite(state: SampleState) -> None:
    """Stop on logits that were not finite; waits for the device.

    Raises:
        FloatingPointError: the scale and, in a refinement, the pass are named.
    """
    faults = state.fault_B[state.fault_B > 0]
    if len(faults):
        side, step = divmod(int(faults.min()) - 1, _STEPS)
        where = f", refinement pass {step}" if step else ""
        raise FloatingPointError(f"non-finite logits at scale {side}x{side}{where}")


def _predict(
    model: ScaleTransformer, state: SampleState, f_hat: Tensor, *, first: bool
) -> Categorical:
    """Evaluate the network at the state's scale: the guided distribution of its codes.

    Args:
        model: the transformer.
        state: before the scale.
        f_hat: the map that the scale sees.
        first: store the scale's keys and values; a refinement pass leaves them as they are.
    """
    scale = state.scale
    halves = scale.halves if first else scale.pass_halves
    conditioning = state.conditioning.map(lambda part: part[:halves].flatten(0, 1))
    if state.step == 0:
        x_BlW = model.start(conditioning)
    else:
        tokens_BlC = model.quantizer.to_scale(f_hat, scale.side).flatten(2).transpose(1, 2)
        x_BlW = model.embed(tokens_BlC.to(model.pos_embed.dtype), scale.known)
        x_BlW = torch.cat([x_BlW] * halves)
    x_BlW = model.hidden(x_BlW, conditioning, state.constants, scale.span, state.cache, write=first)
    if scale.weight == 0:
        batch = len(state)
        h_BlW = model.before_head(x_BlW[:batch], conditioning.map(lambda part: part[:batch]))
    else:
        with_BlW, without_BlW = model.before_head(x_BlW, conditioning).chunk(2)
        h_BlW = guidance.combine(with_BlW, without_BlW, scale.weight)
    return Categorical(h_BlW, model.head, keep=scale.passes > 0 and scale.pass_halves == 0)


def _candidates(probs_Bl: Tensor, config: SamplerConfig, free_Bl: Tensor | None) -> Tensor:
    """Which codes a pass draws again: what the policy chooses of those that are not given."""
    redraw_Bl = RESAMPLE[config.resample](probs_Bl, config)
    return redraw_Bl if free_Bl is None else redraw_Bl & free_Bl


def _first_fault(fault_B: Tensor, probs_Bl: Tensor, side: int, step: int) -> Tensor:
    """Note the scale and pass of images whose probabilities are, for the first time, not finite."""
    number = side * _STEPS + step + 1
    return torch.where(probs_Bl.isnan().any(1) & (fault_B == 0), number, fault_B)


def _given(state: SampleState) -> tuple[Tensor, Tensor | None]:
    """The scale's codes that are given, and which are free to be drawn; None: all are."""
    if state.given is None:
        return state.codes_BL[:, :0], None
    span = slice(state.scale.span.begin, state.scale.span.end)
    return state.given.codes_BL[:, span], ~state.given.keep_BL[:, span]


def _conditioning(model: ScaleTransformer, labels_B: Tensor, halves: int) -> Conditioning:
    """What the classes decide, each part [halves, B, ...]: for the classes, then for none."""
    conditioning = model.conditioning(F.pad(labels_B, (0, halves - 1), value=model.null_class))
    if halves == 1:
        return conditioning.map(lambda part: part[None])
    return conditioning.map(  # the null class is computed once and stands beside each image
        lambda part: torch.stack((part[:-1], part[-1:].expand_as(part[:-1])))
    )


def _first_uniforms(plan: Plan, seeds_B: Tensor) -> Tensor:
    """The uniforms of all first draws [B, L], at once: a hash is many small operations."""
    device = seeds_B.device
    places, parents = [], []
    for scale in plan.scales:
        length = scale.span.end - scale.span.begin
        places.append(torch.arange(length, device=device))
        parents.append(torch.full((length,), scale.parent, device=device))
    return uniform(seeds_B[:, None], Stream.CODES, torch.cat(parents), 0, torch.cat(places))


def _uniforms(state: SampleState, step: int) -> Tensor:
    """What a pass over the scale draws with [B, l]; pass 0 is the first draw."""
    if step == 0:
        return state.uniforms_BL[:, state.scale.span.begin : state.scale.span.end]
    places_l = torch.arange(state.scale.side**2, device=state.seeds_B.device)
    return uniform(state.seeds_B[:, None], Stream.CODES, state.scale.parent, step, places_l)

"""Drawing images scale by scale, with guidance and refinement (DESIGN: algorithms 3 and 4).

:func:`advance` draws one scale for a batch of images; everything else is built on it. A
:class:`SampleState` can be split, joined and continued, which is how a server lets requests join
and leave between scales.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from srdd.generator import Cost
from srdd.rng import uniform
from srdd.var import guidance
from srdd.var.attention import KVCache
from srdd.var.categorical import CodeLaw
from srdd.var.checks import check_request, visited
from srdd.var.config import SamplerConfig
from srdd.var.cost import conditioning_flops, decoder_flops, increment_flops, pass_flops
from srdd.var.masks import views
from srdd.var.resample import candidates
from srdd.var.state import SampleState
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

_DRAW = 0x5A  # the stream of uniforms that codes are drawn with
_STEPS = 1 << 32  # more passes than any scale has: numbers the evaluations


@torch.no_grad()
def begin(
    model: ScaleTransformer,
    tokenizer: Tokenizer,
    labels_B: Tensor | Sequence[int],
    config: SamplerConfig,
    seeds_B: Tensor | Sequence[int],
) -> SampleState:
    """The state before the first scale.

    Raises:
        UserError: a class, a seed count or a setting does not fit the model.
    """
    labels_B, seeds_B = check_request(model, labels_B, config, seeds_B)
    device = model.pos_embed.device
    return start(model, tokenizer, labels_B.to(device), config, seeds_B.to(device))


@torch.no_grad()
def start(
    model: ScaleTransformer,
    tokenizer: Tokenizer,
    labels_B: Tensor,
    config: SamplerConfig,
    seeds_B: Tensor,
) -> SampleState:
    """:func:`begin` for tensors on the device that are known to fit; never waits for it."""
    schedule, batch, device = visited(model, config), len(labels_B), labels_B.device
    halves = 2 if config.cfg > 0 else 1
    conditioning = model.conditioning(F.pad(labels_B, (0, halves - 1), value=model.null_class))
    if halves == 1:
        conditioning = conditioning.map(lambda part: part[None])
    else:  # the null class is computed once and stands beside each image
        conditioning = conditioning.map(
            lambda part: torch.stack((part[:-1], part[-1:].expand_as(part[:-1])))
        )
    cache, seen = None, views(model.config.mask, schedule)
    if any(view.first != view.begin for view in seen):
        heads = model.config.num_heads
        shape = (model.config.depth, halves, batch, heads, model.config.width // heads)
        cache = KVCache.empty(shape, seen, model.pos_embed)
    # The first draws' uniforms at once: a hash is many small operations.
    lengths = [view.end - view.begin for view in seen]
    places_L = torch.cat([torch.arange(length, device=device) for length in lengths])
    parents_L = torch.cat(
        [
            torch.full((length,), parent, device=device)
            for length, parent in zip(lengths, schedule.parent_index, strict=True)
        ]
    )
    flops = halves * conditioning_flops(model.config) + decoder_flops(tokenizer.config)
    return SampleState(
        seeds_B=seeds_B,
        uniforms_BL=uniform(seeds_B[:, None], _DRAW, parents_L, 0, places_L),
        conditioning=conditioning,
        constants=model.constants(),
        f_hat=torch.zeros(
            batch, model.config.z_channels, schedule.side, schedule.side, device=device
        ),
        codes_BL=torch.zeros(batch, 0, dtype=torch.int64, device=device),
        cache=cache,
        config=config,
        schedule=schedule,
        step=0,
        cost=Cost(
            torch.zeros(batch, dtype=torch.int64, device="cpu"),
            torch.full((batch,), flops, device="cpu"),
        ),
        fault_B=torch.zeros(batch, dtype=torch.int64, device=device),
    )


def _evaluate(
    model: ScaleTransformer, state: SampleState, tokens_BlC: Tensor | None, write: bool
) -> tuple[Tensor, int, int]:
    """One evaluation of the network at the state's scale.

    Returns:
        Guided output before the linear head [B, l, W], evaluations and FLOPs an image.
    """
    config, schedule, scale = state.config, state.schedule, state.step
    side = schedule.patch_nums[scale]
    view = views(model.config.mask, schedule)[scale]
    weights = guidance.weights(config, schedule)
    weight = weights[scale]
    # Where the mask looks back, later guided scales need this one's unconditional half too.
    halves = 2 if weight != 0 or (write and state.cache is not None and any(weights[scale:])) else 1
    conditioning = state.conditioning.map(lambda part: part[:halves].flatten(0, 1))
    if tokens_BlC is None:
        x_BlW = model.start(conditioning)
    else:
        known = model.schedule.patch_nums.index(side)  # rows are those of the model's own scales
        x_BlW = model.embed(tokens_BlC.to(model.pos_embed.dtype), known)
        x_BlW = torch.cat([x_BlW] * halves)
    x_BlW = model.hidden(x_BlW, conditioning, state.constants, view, state.cache, write)
    if weight == 0:
        batch = len(state)
        h_BlW = model.before_head(x_BlW[:batch], conditioning.map(lambda part: part[:batch]))
    else:
        with_BlW, without_BlW = model.before_head(x_BlW, conditioning).chunk(2)
        h_BlW = guidance.combine(with_BlW, without_BlW, weight)
    flops = pass_flops(
        model.config,
        view.end - view.begin,
        view.end - view.first,
        guided=halves == 2,
        first=tokens_BlC is None,
    )
    return h_BlW, halves, flops


@torch.no_grad()
def advance(model: ScaleTransformer, state: SampleState) -> SampleState:
    """Draw the next scale, refine it, and add it to the map.

    Where the mask looks back, the scale's keys and values go into the state's own cache: a state
    is advanced once. Off the CPU and without refinement nothing here waits for the device.

    Raises:
        FloatingPointError: on CPU, as :func:`check_finite`; elsewhere that finds it later.
    """
    quantizer, config, schedule, scale = model.quantizer, state.config, state.schedule, state.step
    side, parent = schedule.patch_nums[scale], schedule.parent_index[scale]
    begin_l, end_l = schedule.spans[scale]
    feedback = "none" if scale == 0 else config.feedback  # scale 1 has no map as input
    nfe_B, flops_B, fault_B = state.cost.nfe_B.clone(), state.cost.flops_B.clone(), state.fault_B

    def tokens(f_hat: Tensor) -> Tensor:
        return quantizer.to_scale(f_hat, side).flatten(2).transpose(1, 2)

    def blame(fault_b: Tensor, likely_Bl: Tensor, step: int) -> Tensor:
        number = side * _STEPS + step + 1
        return torch.where(likely_Bl.isnan().any(1) & (fault_b == 0), number, fault_b)

    first = None if scale == 0 else tokens(state.f_hat)
    h_BlW, nfe, flops = _evaluate(model, state, first, write=True)
    nfe_B += nfe
    flops_B += flops
    passes = config.active()["refine_steps"]
    law = CodeLaw(h_BlW, model.head, keep=passes > 0 and feedback == "none")
    codes_Bl, likely_Bl = law.draw(state.uniforms_BL[:, begin_l:end_l], config)
    fault_B = blame(fault_B, likely_Bl, 0)

    rows_b = torch.arange(len(state), device=codes_Bl.device)  # images still refined
    active, shown_Bl = state, codes_Bl
    for step in range(1, passes + 1):
        redraw = candidates(likely_Bl, config)
        some = redraw.any(1)
        if not some.all():  # the others have nothing left to redraw: they stop here
            rows_b, redraw, shown_Bl = rows_b[some], redraw[some], shown_Bl[some]
            if not len(rows_b):
                break
            active, law = active.select(some), law.select(some)
        if feedback != "none":
            h = quantizer.grid(shown_Bl, side)
            if feedback == "kept":
                h = h * ~redraw.view(-1, 1, side, side)
            again = tokens(active.f_hat + quantizer.increment(h, side))
            h_BlW, nfe, flops = _evaluate(model, active, again, write=False)
            law = CodeLaw(h_BlW, model.head)
            counted = rows_b.cpu()
            nfe_B[counted] += nfe
            flops_B[counted] += flops + increment_flops(model.config)
        places_l = torch.arange(end_l - begin_l, device=rows_b.device)
        uniforms = uniform(active.seeds_B[:, None], _DRAW, parent, step, places_l)
        shown_Bl, likely_Bl = law.draw(uniforms, config, shown_Bl, redraw)
        codes_Bl[rows_b] = shown_Bl
        fault_B = fault_B.index_copy(0, rows_b, blame(fault_B[rows_b], likely_Bl, step))

    increment = quantizer.increment(quantizer.grid(codes_Bl, side), side)
    state = replace(
        state,
        f_hat=state.f_hat + increment,
        codes_BL=torch.cat((state.codes_BL, codes_Bl), dim=1),
        step=scale + 1,
        cost=Cost(nfe_B, flops_B + increment_flops(model.config)),
        fault_B=fault_B,
    )
    if fault_B.is_cpu:
        check_finite(state)
    return state


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


def decode(tokenizer: Tokenizer, state: SampleState) -> Tensor:
    """Decode what a state holds: [B, 3, R, R] in [0, 1].

    Raises:
        FloatingPointError: as :func:`check_finite`.
    """
    check_finite(state)
    return tokenizer.decode_latent(state.f_hat).add(1).mul(0.5)

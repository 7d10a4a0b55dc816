"""Drawing images scale by scale, with guidance and refinement (DESIGN: algorithms 3 and 4).

:func:`advance` draws one scale for a batch of images; everything else is built on it. A
:class:`SampleState` can be split, joined and continued, which is how a server lets requests join
and leave between scales.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from srdd.errors import UserError
from srdd.rng import image_seeds, uniform
from srdd.var import guidance
from srdd.var.attention import KVCache
from srdd.var.categorical import CodeLaw
from srdd.var.checks import check_request, visited
from srdd.var.config import SamplerConfig
from srdd.var.cost import conditioning_flops, decoder_flops, increment_flops, pass_flops
from srdd.var.masks import views
from srdd.var.pipeline import Pipeline
from srdd.var.resample import candidates
from srdd.var.state import Preview, SampleResult, SampleState, select

_DRAW = 0x5A  # the stream of uniforms that codes are drawn with
_STEPS = 1 << 32  # more passes than any scale has: numbers the evaluations


@torch.no_grad()
def begin(
    pipeline: Pipeline,
    labels_B: Tensor | Sequence[int],
    config: SamplerConfig,
    seeds_B: Tensor | Sequence[int],
) -> SampleState:
    """The state before the first scale.

    Raises:
        UserError: a class, a seed count or a setting does not fit the model.
    """
    labels_B, seeds_B = check_request(pipeline, labels_B, config, seeds_B)
    device = pipeline.transformer.pos_embed.device
    return start(pipeline, labels_B.to(device), config, seeds_B.to(device))


@torch.no_grad()
def start(
    pipeline: Pipeline, labels_B: Tensor, config: SamplerConfig, seeds_B: Tensor
) -> SampleState:
    """:func:`begin` for tensors on the device that are known to fit; never waits for it."""
    model = pipeline.transformer
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
        scale=0,
        nfe_B=torch.zeros(batch, dtype=torch.int64, device="cpu"),
        flops_B=torch.full((batch,), halves * conditioning_flops(model.config), device="cpu"),
        fault_B=torch.zeros(batch, dtype=torch.int64, device=device),
    )


def _evaluate(
    pipeline: Pipeline,
    state: SampleState,
    tokens_BlC: Tensor | None,
    config: SamplerConfig,
    write: bool,
) -> tuple[Tensor, int, int]:
    """One evaluation of the network at the state's scale.

    Returns:
        Guided output before the linear head [B, l, W], evaluations and FLOPs an image.
    """
    model, schedule = pipeline.transformer, visited(pipeline.transformer, config)
    scale, side = state.scale, schedule.patch_nums[state.scale]
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
def advance(pipeline: Pipeline, state: SampleState, config: SamplerConfig) -> SampleState:
    """Draw the next scale, refine it, and add it to the map.

    Where the mask looks back, the scale's keys and values go into the state's own cache: a state
    is advanced once. Off the CPU and without refinement nothing here waits for the device.

    Raises:
        UserError: the state was begun without the guidance that ``config`` asks for.
        FloatingPointError: on CPU, as :func:`check_finite`; elsewhere that finds it later.
    """
    if config.cfg > 0 and len(state.conditioning.start_BW) < 2:
        raise UserError("the state was begun without guidance: begin it with cfg > 0")
    model, quantizer = pipeline.transformer, pipeline.transformer.quantizer
    schedule, scale = visited(model, config), state.scale
    side, parent = schedule.patch_nums[scale], schedule.parent_index[scale]
    begin_l, end_l = schedule.spans[scale]
    feedback = "none" if scale == 0 else config.feedback  # scale 1 has no map as input
    nfe_B, flops_B, fault_B = state.nfe_B.clone(), state.flops_B.clone(), state.fault_B

    def tokens(f_hat: Tensor) -> Tensor:
        return quantizer.to_scale(f_hat, side).flatten(2).transpose(1, 2)

    def blame(fault_b: Tensor, likely_Bl: Tensor, step: int) -> Tensor:
        number = side * _STEPS + step + 1
        return torch.where(likely_Bl.isnan().any(1) & (fault_b == 0), number, fault_b)

    first = None if scale == 0 else tokens(state.f_hat)
    h_BlW, nfe, flops = _evaluate(pipeline, state, first, config, write=True)
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
            active, law = select(active, some), law.select(some)
        if feedback != "none":
            h = quantizer.grid(shown_Bl, side)
            if feedback == "kept":
                h = h * ~redraw.view(-1, 1, side, side)
            again = tokens(active.f_hat + quantizer.increment(h, side))
            h_BlW, nfe, flops = _evaluate(pipeline, active, again, config, write=False)
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
        scale=scale + 1,
        nfe_B=nfe_B,
        flops_B=flops_B + increment_flops(model.config),
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


def images_of(pipeline: Pipeline, state: SampleState) -> Tensor:
    """Decode what a state holds: [B, 3, R, R] in [0, 1].

    Raises:
        FloatingPointError: as :func:`check_finite`.
    """
    check_finite(state)
    return pipeline.tokenizer.decode_latent(state.f_hat).add(1).mul(0.5)


def sample_stream(
    pipeline: Pipeline,
    labels_B: Tensor | Sequence[int],
    config: SamplerConfig | None,
    seeds_B: Tensor | Sequence[int],
) -> Iterator[Preview]:
    """Draw images and show each scale as it is done: one :class:`Preview` a scale."""
    config = config or pipeline.sampler
    state = begin(pipeline, labels_B, config, seeds_B)
    for scale in range(visited(pipeline.transformer, config).num_scales):
        done = state.codes_BL.shape[1]
        state = advance(pipeline, state, config)
        yield Preview(scale, images_of(pipeline, state), state.codes_BL[:, done:])


def finish(pipeline: Pipeline, state: SampleState) -> SampleResult:
    """Decode a state whose scales are all drawn.

    Raises:
        FloatingPointError: as :func:`check_finite`.
    """
    check_finite(state)
    return result_of(pipeline, state, pipeline.tokenizer.decode_latent(state.f_hat))


def result_of(pipeline: Pipeline, state: SampleState, pixels: Tensor) -> SampleResult:
    """A finished state with its images, given as [B, 3, R, R] in [-1, 1]."""
    flops_B = state.flops_B + decoder_flops(pipeline.tokenizer.config)
    images = pixels.add(1).mul(0.5)
    return SampleResult(images, state.codes_BL, state.nfe_B, flops_B.double() / 1e9)


def sample(
    pipeline: Pipeline,
    labels_B: Tensor | Sequence[int],
    config: SamplerConfig | None = None,
    seeds_B: Tensor | Sequence[int] | None = None,
) -> SampleResult:
    """Draw an image for each label.

    ``config`` None uses the pipeline's own settings, ``seeds_B`` None the seeds of job 0.

    An image depends on its label, its seed and the settings alone.

    Raises:
        UserError: labels, seeds or settings do not fit the model.
        FloatingPointError: the network gave logits that are not finite.
    """
    config = config or pipeline.sampler
    seeds_B = image_seeds(0, 0, len(labels_B)) if seeds_B is None else seeds_B
    state = begin(pipeline, labels_B, config, seeds_B)
    for _ in range(visited(pipeline.transformer, config).num_scales):
        state = advance(pipeline, state, config)
    return finish(pipeline, state)

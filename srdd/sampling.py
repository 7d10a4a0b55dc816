"""Drawing images scale by scale, with guidance and refinement (DESIGN: algorithms 3 and 4).

:func:`advance` draws one scale for a batch of images; everything else is built on it. A
:class:`SampleState` can be split, joined and continued, which is how a server lets requests join
and leave between scales.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from srdd import guidance
from srdd.attention import KVCache
from srdd.config import SamplerConfig
from srdd.cost import conditioning_flops, decoder_flops, increment_flops, pass_flops
from srdd.errors import UserError
from srdd.masks import first_scale_seen
from srdd.pipeline import Pipeline
from srdd.resample import candidates, code_probs, draw
from srdd.rng import image_seeds, uniform
from srdd.sample_state import Preview, SampleResult, SampleState, select
from srdd.scales import ScaleSchedule
from srdd.transformer import Conditioning, ScaleTransformer

_DRAW = 0x5A  # the stream of uniforms that codes are drawn with


def _integers(name: str, values: Tensor | Sequence[int]) -> Tensor:
    """Integers as int64.

    Raises:
        UserError: they are no integers, or do not fit into 64 bits.
    """
    try:
        tensor = torch.as_tensor(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise UserError(f"{name} must be integers: {error}") from None
    if tensor.numel() and (tensor.is_floating_point() or tensor.dtype == torch.bool):
        raise UserError(f"{name} must be integers, got {tensor.dtype}")
    return tensor.to(torch.int64)


def visited(model: ScaleTransformer, config: SamplerConfig) -> ScaleSchedule:
    """The scales that ``config`` visits of those ``model`` knows.

    Raises:
        UserError: a scale is unknown, or the first or last one is left out.
    """
    if config.top_k > model.config.vocab_size:
        raise UserError(
            f"top_k {config.top_k} exceeds the vocabulary of {model.config.vocab_size} codes"
        )
    if config.patch_nums is None:
        return model.schedule
    schedule = model.schedule.prune(config.patch_nums)
    if schedule.patch_nums[0] != schedule.parent[0]:
        raise UserError(f"patch_nums must begin at scale {schedule.parent[0]}, the start token's")
    return schedule


def check_fits(model: ScaleTransformer, config: SamplerConfig) -> ScaleSchedule:
    """The scales visited, if the settings fit the model.

    Raises:
        UserError: a scale is unknown, top_k too large, or there is nothing to guide.
    """
    if model.config.unconditional and config.cfg > 0:
        raise UserError("an unconditional model has no guidance: set cfg to 0")
    return visited(model, config)


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
    model = pipeline.transformer
    device = model.pos_embed.device
    labels_B, seeds_B = _integers("labels", labels_B), _integers("seeds", seeds_B)
    batch = len(labels_B)
    if labels_B.shape != seeds_B.shape or labels_B.dim() != 1:
        raise UserError(
            f"give one seed an image: {list(labels_B.shape)} labels, {list(seeds_B.shape)} seeds"
        )
    model.check_labels(labels_B)
    labels_B, seeds_B = labels_B.to(device), seeds_B.to(device)
    schedule = check_fits(model, config)
    side = schedule.side
    cache = null_cache = None
    if any(first_scale_seen(model.config.mask, s) != s for s in range(schedule.num_scales)):
        heads = model.config.num_heads
        head = model.config.width // heads
        shape = (model.config.depth, batch, heads, head, schedule.spans, model.pos_embed)
        cache = KVCache.empty(*shape)
        if config.cfg > 0:
            null_cache = KVCache.empty(*shape)
    null = torch.tensor([model.null_class], device=device)
    counts_B = torch.zeros(batch, dtype=torch.int64, device=device)
    halves = 2 if config.cfg > 0 else 1
    return SampleState(
        seeds_B=seeds_B,
        conditioning=model.conditioning(labels_B),
        null=model.conditioning(null),
        f_hat=model.pos_embed.new_zeros(
            (batch, model.config.z_channels, side, side), dtype=torch.float32
        ),
        codes_BL=torch.zeros(batch, 0, dtype=torch.int64, device=device),
        cache=cache,
        null_cache=null_cache,
        scale=0,
        nfe_B=counts_B,
        flops_B=counts_B + halves * conditioning_flops(model.config),
    )


def _probabilities(
    model: ScaleTransformer,
    state: SampleState,
    tokens_BlC: Tensor | None,
    schedule: ScaleSchedule,
    weights: tuple[float, ...],
    write: bool,
) -> tuple[Tensor, int, int]:
    """One evaluation of the network at the state's scale.

    Returns:
        Guided probabilities [B, l, V] at temperature 1, evaluations and FLOPs an image.
    """
    scale, batch = state.scale, len(state)
    parent_index = schedule.parent_index[scale]
    weight = weights[scale]
    guided = weight != 0
    # Where the mask looks back, later guided scales need this one's unconditional half too.
    halves = guided or (write and state.null_cache is not None and any(weights[scale:]))
    embedded = None
    if tokens_BlC is not None:
        embedded = model.embed(tokens_BlC.to(model.pos_embed.dtype), parent_index)

    def run(conditioning: Conditioning, cache: KVCache | None) -> Tensor:
        x_BlW = model.start(conditioning) if embedded is None else embedded
        x_BlW = model.hidden(x_BlW, conditioning, cache=cache, scale=scale, write=write)
        return model.before_head(x_BlW, conditioning)

    h_BlW = run(state.conditioning, state.cache)
    if halves:
        null = Conditioning(*(part.expand(batch, *part.shape[1:]) for part in state.null))
        null_BlW = run(null, state.null_cache)
        if guided:
            h_BlW = guidance.combine(h_BlW, null_BlW, weight)
    logits_BlV = model.head(h_BlW.to(model.head.weight.dtype)).float()
    if not torch.isfinite(logits_BlV).all():
        raise FloatingPointError(
            f"non-finite logits at scale {schedule.patch_nums[scale]}x{schedule.patch_nums[scale]}"
        )
    begin_l, end_l = schedule.spans[scale]
    first_seen = schedule.spans[first_scale_seen(model.config.mask, scale)][0]
    flops = pass_flops(
        model.config,
        end_l - begin_l,
        end_l - first_seen,
        guided=halves,
        first=tokens_BlC is None,
    )
    return logits_BlV.softmax(-1), 2 if halves else 1, flops


@torch.no_grad()
def advance(pipeline: Pipeline, state: SampleState, config: SamplerConfig) -> SampleState:
    """Draw the next scale, refine it, and add it to the map.

    Where the mask looks back, the scale's keys and values go into the state's own cache: a state
    is advanced once.

    Raises:
        FloatingPointError: the network gave logits that are not finite; the scale is named.
    """
    model, quantizer = pipeline.transformer, pipeline.transformer.quantizer
    schedule = visited(model, config)
    scale = state.scale
    side, parent = schedule.patch_nums[scale], schedule.parent_index[scale]
    weights = guidance.weights(config, schedule)
    nfe_B, flops_B = state.nfe_B.clone(), state.flops_B.clone()
    places_l = torch.arange(side * side, device=state.seeds_B.device)

    def uniforms(seeds_B: Tensor, step: int) -> Tensor:
        return uniform(seeds_B[:, None], _DRAW, parent, step, places_l)

    def tokens(f_hat: Tensor) -> Tensor:
        return quantizer.to_scale(f_hat, side).flatten(2).transpose(1, 2)

    first = None if scale == 0 else tokens(state.f_hat)
    probs, nfe, flops = _probabilities(model, state, first, schedule, weights, write=True)
    nfe_B += nfe
    flops_B += flops
    codes_Bl = draw(probs, uniforms(state.seeds_B, 0), config)

    rows = torch.arange(len(state), device=codes_Bl.device)  # images still refined
    active = state
    feedback = "none" if scale == 0 else config.feedback  # scale 1 has no map as input
    for step in range(1, config.refine_steps + 1):
        redraw = candidates(code_probs(probs, codes_Bl[rows]), config)
        some = redraw.any(1)
        if not some.all():  # the others have nothing left to redraw: they stop here
            rows, redraw, probs = rows[some], redraw[some], probs[some]
            if not len(rows):
                break
            active = select(active, some)
        codes = codes_Bl[rows]
        if feedback != "none":
            h = quantizer.grid(codes, side)
            if feedback == "kept":
                h = h * ~redraw.view(-1, 1, side, side)
            shown = tokens(active.f_hat + quantizer.increment(h, side))
            probs, nfe, flops = _probabilities(model, active, shown, schedule, weights, write=False)
            nfe_B[rows] += nfe
            flops_B[rows] += flops + increment_flops(model.config)
        drawn = draw(probs, uniforms(active.seeds_B, step), config)
        codes_Bl[rows] = torch.where(redraw, drawn, codes)

    increment = quantizer.increment(quantizer.grid(codes_Bl, side), side)
    return replace(
        state,
        f_hat=state.f_hat + increment,
        codes_BL=torch.cat((state.codes_BL, codes_Bl), dim=1),
        scale=scale + 1,
        nfe_B=nfe_B,
        flops_B=flops_B + increment_flops(model.config),
    )


def images_of(pipeline: Pipeline, state: SampleState) -> Tensor:
    """Decode what a state holds: [B, 3, R, R] in [0, 1]."""
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
    """Decode a state whose scales are all drawn."""
    flops_B = state.flops_B + decoder_flops(pipeline.tokenizer.config)
    images = images_of(pipeline, state)
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

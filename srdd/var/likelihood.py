"""The claim as code: scale-wise generation read as discrete diffusion (paper, Sec. 3; Fig. 3).

Forward, an image's codes lose their finest scale, step by step: x_S -> x_{S-1} -> ... -> x_0, where
x_n holds the codes of the n coarsest scales and x_0 none. The step is deterministic, so the ELBO
has no entropy left and is minus the summed cross-entropy. ``docs/theory.md`` derives it, and says
which of the paper's statements are identities and which are not.

Letters: B images, L codes of all scales, l of one, S scales, C latent channels, N latent side,
V vocabulary, p a scale's side. Scales are indexed from 0; ``kept`` counts scales, 0 to S.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.var.quantize import MultiScaleQuantizer
from srdd.var.scales import ScaleSchedule
from srdd.var.transformer import ScaleTransformer


def kept_codes(schedule: ScaleSchedule, codes_BL: Tensor, kept: int) -> Tensor:
    """The state x_n: the codes of the ``kept`` coarsest scales.

    Args:
        schedule: the scales of the codes.
        codes_BL: int64 [B, L].
        kept: n, from 0 (nothing) to S (the codes themselves).

    Returns:
        int64 [B, l_1 + ... + l_n], a view. All probability of q(x_n | x_S) is on it.

    Raises:
        UserError: the codes are of another schedule, or ``kept`` lies outside 0 to S.
    """
    _check_codes(schedule, codes_BL)
    _check_kept(schedule, kept, 0)
    return codes_BL[:, : schedule.spans[kept - 1][1] if kept else 0]


def scale_codes(schedule: ScaleSchedule, codes_BL: Tensor, scale: int) -> Tensor:
    """The codes of one scale: what step ``scale + 1`` of the reverse chain adds.

    They are no state of a Markov chain by themselves: the codes of a coarser scale cannot be
    computed from them, and the next scale's codes depend on more than on them, under either mask.

    Args:
        schedule: the scales of the codes.
        codes_BL: int64 [B, L].
        scale: its index, from 0.

    Returns:
        int64 [B, l], a view.

    Raises:
        UserError: the codes are of another schedule, or there is no such scale.
    """
    _check_codes(schedule, codes_BL)
    if not 0 <= scale < schedule.num_scales:
        raise UserError(f"scale must be an index from 0 to {schedule.num_scales - 1}, got {scale}")
    begin, end = schedule.spans[scale]
    return codes_BL[:, begin:end]


def kept_map(quantizer: MultiScaleQuantizer, codes_BL: Tensor, kept: int) -> Tensor:
    """The state's image in latent space, f_hat_n: the sum of the first n increments.

    It is the state that sampling under the ``markov`` mask carries: with the codes drawn at scale
    n + 1 it gives f_hat_{n+1}, and nothing else of the past is used.

    Args:
        quantizer: a tokenizer's or a transformer's.
        codes_BL: int64 [B, L].
        kept: n, from 0 (zero everywhere) to S (what ``quantizer.decode`` gives).

    Returns:
        float32 [B, C, N, N].

    Raises:
        UserError: the codes are of another schedule, or ``kept`` lies outside 0 to S.
    """
    _check_kept(quantizer.schedule, kept, 0)
    return kept_maps(quantizer, codes_BL)[kept]


def kept_maps(quantizer: MultiScaleQuantizer, codes_BL: Tensor) -> Tensor:
    """f_hat_0 to f_hat_S: int64 [B, L] -> float32 [S + 1, B, C, N, N].

    Raises:
        UserError: the codes are of another schedule.
    """
    _check_codes(quantizer.schedule, codes_BL)
    increments = quantizer.increments(codes_BL)
    maps = [torch.zeros_like(increments[0])]
    for increment in increments:
        maps.append(maps[-1] + increment)
    return torch.stack(maps)


def seen_map(quantizer: MultiScaleQuantizer, codes_BL: Tensor, kept: int) -> Tensor:
    """What the transformer is fed of f_hat_n when it draws scale n + 1: its average on that grid.

    Args:
        quantizer: a tokenizer's or a transformer's.
        codes_BL: int64 [B, L].
        kept: n, from 1 to S - 1 (at n = 0 the transformer is fed the class alone).

    Returns:
        float32 [B, C, p, p], p the side of scale n + 1.

    Raises:
        UserError: the codes are of another schedule, or ``kept`` lies outside 1 to S - 1.
    """
    schedule = quantizer.schedule
    _check_kept(schedule, kept, 1, schedule.num_scales - 1)
    return quantizer.to_scale(kept_map(quantizer, codes_BL, kept), schedule.patch_nums[kept])


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The bound and its terms, in float64, one row an image.

    ``elbo_B`` bounds log p(x_S | class). The prior's term KL(q(x_0 | x_S) || p(x_0)) is 0, for x_0
    is empty; the bound is tight. A bound on the image itself has log p(image | f_hat_S) more, in
    which the transformer has no part.
    """

    nll_BL: Tensor  # nats, -log p(code | codes of coarser scales, class)
    nll_BS: Tensor  # nats a scale: KL(q(x_n | x_{n-1}, x_S) || p(x_n | x_{n-1}))
    nll_per_code_BS: Tensor  # nats a code: each scale's mean
    elbo_B: Tensor  # nats: minus the sum over all scales
    bits_per_image_B: Tensor  # L log2(V) for a uniform model
    bits_per_token_B: Tensor  # log2(V) for a uniform model


@torch.no_grad()
def likelihood(model: ScaleTransformer, labels_B: Tensor, codes_BL: Tensor) -> Likelihood:
    """The per-scale NLL and ELBO of images' codes (paper, Sec. 3), teacher-forced.

    It is the likelihood of sampling as trained: no guidance, temperature 1, no truncation, no
    refinement.

    Args:
        model: of either mask.
        labels_B: int64 [B]; the null class is index ``num_classes``.
        codes_BL: int64 [B, L].

    Raises:
        UserError: the codes are of another schedule or outside the vocabulary, there is not one
            label an image, or a label is out of range.
    """
    _check_codes(model.schedule, codes_BL, model.config.vocab_size)
    _check_labels(model, labels_B, codes_BL)
    log_p_BLV = model(labels_B, codes_BL).double().log_softmax(dim=2)
    nll_BL = -log_p_BLV.gather(2, codes_BL[:, :, None])[:, :, 0]
    scales = [nll_BL[:, begin:end] for begin, end in model.schedule.spans]
    bits_B = nll_BL.sum(1) / math.log(2)
    return Likelihood(
        nll_BL=nll_BL,
        nll_BS=torch.stack([scale.sum(1) for scale in scales], dim=1),
        nll_per_code_BS=torch.stack([scale.mean(1) for scale in scales], dim=1),
        elbo_B=-nll_BL.sum(1),
        bits_per_image_B=bits_B,
        bits_per_token_B=bits_B / model.schedule.length,
    )


@torch.no_grad()
def input_blocks_that_matter(
    model: ScaleTransformer, labels_B: Tensor, codes_BL: Tensor, seed: int = 0
) -> Tensor:
    """Which input blocks each scale's logits depend on, found by replacing one block at a time.

    Block t of the input is the map of the scales before t. A model is Markov (paper, Definition 1)
    if scale s depends on block s alone. "Depends" is meant to the bit: no tolerance.

    Args:
        model: in eval mode, of any mask.
        labels_B: int64 [B].
        codes_BL: int64 [B, L]; they give the input that blocks are replaced in.
        seed: of the replacements, the input plus normal numbers of its spread.

    Returns:
        bool [S, S]: row s, column t is True if replacing block t changes a logit of scale s.
        Column 0 is False: block 0 is the start token, which holds the class and no codes.

    Raises:
        UserError: the codes are of another schedule or outside the vocabulary, there is not one
            label an image, or a label is out of range.
    """
    schedule = model.schedule
    _check_codes(schedule, codes_BL, model.config.vocab_size)
    _check_labels(model, labels_B, codes_BL)
    spans, start = schedule.spans, schedule.spans[0][1]
    matters_SS = torch.zeros(schedule.num_scales, schedule.num_scales, dtype=torch.bool)
    if schedule.num_scales == 1:
        return matters_SS
    tokens_BlC = model.quantizer.teacher_input(codes_BL)
    noise_BlC = torch.randn(tokens_BlC.shape, generator=torch.Generator().manual_seed(seed))
    other_BlC = tokens_BlC + noise_BlC.to(tokens_BlC) * tokens_BlC.std().clamp_min(1e-3)
    before_BLV = model(labels_B, codes_BL, tokens_BlC=tokens_BlC)
    for t, (begin, end) in list(enumerate(spans))[1:]:
        changed_BlC = tokens_BlC.clone()
        changed_BlC[:, begin - start : end - start] = other_BlC[:, begin - start : end - start]
        differs_L = (model(labels_B, codes_BL, tokens_BlC=changed_BlC) != before_BLV).any(2).any(0)
        for s, (first, last) in enumerate(spans):
            matters_SS[s, t] = differs_L[first:last].any()
    return matters_SS


def pruned_quantizer(
    quantizer: MultiScaleQuantizer, patch_nums: tuple[int, ...]
) -> MultiScaleQuantizer:
    """The same codebook and phi over fewer scales (paper, Sec. 3.3): a frozen copy.

    Raises:
        UserError: a scale is unknown, out of order, or the last is not the latent's side.
    """
    vocab_size, channels = quantizer.codebook.weight.shape
    num_phi = len(quantizer.phi.convs)
    schedule = quantizer.schedule.prune(patch_nums)
    pruned = MultiScaleQuantizer(schedule, vocab_size, channels, num_phi)
    pruned.load_state_dict(quantizer.state_dict())
    return pruned.to(quantizer.codebook.weight).eval().requires_grad_(False)


def changed_codes(
    schedule: ScaleSchedule, codes_BL: Tensor, other_schedule: ScaleSchedule, other_BL: Tensor
) -> dict[int, float]:
    """The share of codes that differ between two encodings, by the side of each shared scale.

    Args:
        schedule: the scales of ``codes_BL``, int64 [B, L].
        codes_BL: the first encoding.
        other_schedule: the scales of ``other_BL``, int64 [B, L'] of the same B images.
        other_BL: the second.

    Raises:
        UserError: codes are not of their schedule, or the images are not as many.
    """
    if len(codes_BL) != len(other_BL):
        raise UserError(f"codes of {len(codes_BL)} images and of {len(other_BL)} do not compare")
    shares = {}
    for scale, side in enumerate(schedule.patch_nums):
        if side in other_schedule.patch_nums:
            at = other_schedule.patch_nums.index(side)
            own_Bl = scale_codes(schedule, codes_BL, scale)
            differs_Bl = own_Bl != scale_codes(other_schedule, other_BL, at)
            shares[side] = float(differs_Bl.double().mean())
    return shares


def _check_codes(schedule: ScaleSchedule, codes_BL: Tensor, vocab_size: int | None = None) -> None:
    if codes_BL.dim() != 2 or codes_BL.shape[1] != schedule.length or codes_BL.is_floating_point():
        raise UserError(
            f"codes must be integers [B, {schedule.length}] for scales "
            f"{list(schedule.patch_nums)}, got {codes_BL.dtype} {list(codes_BL.shape)}"
        )
    if vocab_size is not None and codes_BL.numel():
        low, high = int(codes_BL.min()), int(codes_BL.max())
        if low < 0 or high >= vocab_size:
            raise UserError(f"codes must lie in [0, {vocab_size}), got {low} to {high}")


def _check_kept(schedule: ScaleSchedule, kept: int, low: int, high: int | None = None) -> None:
    high = schedule.num_scales if high is None else high
    if not low <= kept <= high:
        raise UserError(f"kept counts scales, from {low} to {high} here, got {kept}")


def _check_labels(model: ScaleTransformer, labels_B: Tensor, codes_BL: Tensor) -> None:
    if labels_B.shape != codes_BL.shape[:1]:
        raise UserError(
            f"labels must be [{len(codes_BL)}], one an image, got {list(labels_B.shape)}"
        )
    model.check_labels(labels_B)

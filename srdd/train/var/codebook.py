"""What keeps the codebook in use: scales left out, the entropy of assignments, and how to tell."""

import torch
import torch.nn.functional as F
from torch import Tensor

from srdd.rng import Stream, uniform
from srdd.train.config import RestartVote
from srdd.train.workers import Reduce
from srdd.var.quantize import MultiScaleQuantizer, Quantized
from srdd.var.scales import ScaleSchedule

DROPPED = 0.5  # of the scales before the last, in an image that loses some
_MEMORY = 0.9  # of the running mean of assignments
_WANTED_USE = 0.9  # share of the codes that every scale should use


def codebook_usage(counts_V: Tensor) -> tuple[float, float]:
    """The share of codes used at all, and the perplexity of their use: V if all are used alike."""
    share_V = counts_V.double() / counts_V.sum().clamp_min(1)
    used = (counts_V > 0).double().mean()
    return float(used), float(torch.special.entr(share_V).sum().exp())


def dead_codes(used_SV: Tensor, below: float, vote: RestartVote) -> Tensor:
    """The codes that hardly any vector uses, int64 [n].

    Args:
        used_SV: how often each scale used each code.
        below: a code is dead where its share is at most this share of an even use, 1 / V.
        vote: "vector" takes a code's share of all vectors: the finest scale outvotes the others,
            and codes that only a coarse one needs count as dead. "scale" takes the mean over
            scales of its share of each one's vectors.
    """
    if vote == "vector":
        used_SV = used_SV.sum(0, keepdim=True)
    share_SV = used_SV.double() / used_SV.sum(1, keepdim=True).clamp_min(1)
    return (share_SV.mean(0) <= below / used_SV.shape[1]).nonzero()[:, 0]


def needy_scales(used_SV: Tensor, schedule: ScaleSchedule, uniform_n: Tensor) -> Tensor:
    """Where restarted codes go: indices of scales, int64 [n], from numbers in [0, 1].

    A scale is drawn in proportion to its vectors times the share of codes that it lacks to use
    nine in ten; where none lacks any, in proportion to its vectors.
    """
    usage_S = (used_SV > 0).double().mean(1)
    vectors_S = torch.tensor([end - begin for begin, end in schedule.spans]).to(usage_S)
    lack_S = (_WANTED_USE - usage_S).clamp_min(0)
    if not lack_S.any():
        lack_S = torch.ones_like(lack_S)
    bounds_S = (lack_S * vectors_S).cumsum(0)
    chosen_n = torch.searchsorted(bounds_S, uniform_n.to(bounds_S) * bounds_S[-1], right=True)
    return chosen_n.clamp_max(int(lack_S.nonzero()[-1]))


def keep_scales(
    index_b: Tensor, num_scales: int, probability: float, seed: int, step: int
) -> Tensor:
    """Which scales each image is quantised with: bool [B, S].

    With ``probability`` an image loses scales: each but the last with probability a half. So the
    tokenizer meets the pruned schedules of its parent, and no scale can leave all to the others.
    """
    which_S = torch.arange(num_scales + 1, device=index_b.device)
    draws = uniform(index_b[:, None], which_S, seed, step, Stream.SCALES)
    keep_BS = (draws[:, :1] >= probability) | (draws[:, 1:] >= DROPPED)
    keep_BS[:, -1] = True
    return keep_BS


def log_assignment(z_nC: Tensor, codebook_VC: Tensor, temperature: float) -> Tensor:
    """Logarithms of the codes' probabilities for each vector: [n, V].

    The softmax of minus the squared distance, relative to its mean over the codes: scales whose
    residuals are small are no less decided than the others.
    """
    squares_nV = z_nC.square().sum(1, keepdim=True) + codebook_VC.square().sum(1)
    distance_nV = torch.addmm(squares_nV, z_nC, codebook_VC.T, alpha=-2).clamp_min(0)
    mean_n1 = distance_nV.detach().mean(1, keepdim=True).clamp_min(1e-12)
    log_nV: Tensor = (distance_nV / (-temperature * mean_n1)).log_softmax(1)
    return log_nV


def entropy_gap(log_nV: Tensor, mean_V: Tensor) -> Tensor:
    """The mean entropy of the rows minus that of ``mean_V``, which is their mean: in nats.

    The rows are logarithms: the entropy of a probability that underflows has no finite gradient.

    From -log V (each vector decided, all codes used alike) to 0. Where ``mean_V`` is a constant
    estimate of the rows' mean, the value is the cross-entropy's in place of the entropy's, and
    its gradient is the true one.
    """
    share_nV = log_nV.exp()
    own = -(share_nV * log_nV).sum(1).mean()
    gap: Tensor = own + (share_nV.mean(0) * mean_V.clamp_min(1e-12).log()).sum()
    return gap


class EntropyTerm:
    """:func:`entropy_gap` with each scale's mean assignment over the last steps.

    A 1x1 scale has one vector an image, fewer in a batch than codes: the mean is a running one,
    of global batches, so the term depends neither on workers nor on the parts of a batch.
    """

    def __init__(self, num_scales: int, vocab_size: int, temperature: float) -> None:
        self.temperature = temperature
        self.mean_SV = torch.full((num_scales, vocab_size), 1 / vocab_size)
        self._own_SV = torch.zeros(num_scales, vocab_size)

    def begin(self) -> None:
        """Before the first part of a step's batch."""
        self._own_SV = torch.zeros_like(self._own_SV)

    def to(self, device: torch.device) -> None:
        """Move to where the latents are."""
        self.mean_SV, self._own_SV = self.mean_SV.to(device), self._own_SV.to(device)

    def __call__(self, scale: int, z_nC: Tensor, codebook_VC: Tensor, share: float) -> Tensor:
        """The term of one scale; ``share`` of the global batch has these vectors."""
        log_nV = log_assignment(z_nC, codebook_VC, self.temperature)
        self._own_SV[scale] += share * log_nV.detach().exp().mean(0)
        return entropy_gap(log_nV, self.mean_SV[scale])

    def update(self, reduce: Reduce) -> None:
        """After a step: the running mean takes in the global batch."""
        total_SV = reduce.sum(self._own_SV)
        self.mean_SV = _MEMORY * self.mean_SV + (1 - _MEMORY) * total_SV


def quantize(
    quantizer: MultiScaleQuantizer,
    f: Tensor,
    *,
    beta: float,
    keep_BS: Tensor | None = None,
    keep_share: float = 1.0,
    entropy: EntropyTerm | None = None,
    share: float = 1.0,
) -> tuple[Quantized, Tensor]:
    """Quantise for training, with scales left out and the entropy term.

    Args:
        quantizer: the codebook and phi.
        f: [B, C, N, N].
        beta: share of the VQ loss that trains the encoder.
        keep_BS: which scales each image has; where one is left out it adds nothing to f_hat, and
            its codes and its loss do not count.
        keep_share: how often a scale but the last is kept; its loss is divided by it.
        entropy: the term, or none.
        share: of these images in the global batch.

    Returns:
        What :meth:`MultiScaleQuantizer.forward` returns, and the entropy term of each scale.
    """
    if keep_BS is None and entropy is None:
        return quantizer(f, beta), f.new_zeros(quantizer.schedule.num_scales)
    f = f.float()
    f_rest, f_hat = f.detach(), torch.zeros_like(f)
    losses, codes, terms = [], [], []
    last = quantizer.schedule.num_scales - 1
    for scale, side in enumerate(quantizer.schedule.patch_nums):
        z_nC = quantizer.to_scale(f_rest, side).permute(0, 2, 3, 1).flatten(0, 2)
        with torch.no_grad():
            codes_Bl = quantizer.nearest(z_nC).view(len(f), side * side)
        if entropy is not None:  # the same vectors, with their gradient to the encoder
            seen = quantizer.to_scale(f - f_hat.detach(), side)
            rows_nC = seen.permute(0, 2, 3, 1).flatten(0, 2)
            terms.append(entropy(scale, rows_nC, quantizer.codebook.weight, share))
        increment = quantizer.increment(quantizer.grid(codes_Bl, side), side)
        if keep_BS is None:
            weight_B = f.new_ones(len(f))
        else:
            increment = increment * keep_BS[:, scale, None, None, None]
            weight_B = keep_BS[:, scale].float() / (1.0 if scale == last else keep_share)
        f_hat = f_hat + increment
        f_rest = f_rest - increment.detach()
        both_B = _mse(f_hat, f.detach()) + beta * _mse(f_hat.detach(), f)
        losses.append((both_B * weight_B).mean())
        codes.append(codes_Bl)
    found = Quantized(torch.cat(codes, dim=1), f_hat, torch.stack(losses), f_rest)
    return found, torch.stack(terms) if terms else f.new_zeros(last + 1)


def _mse(a: Tensor, b: Tensor) -> Tensor:
    """The mean square error of each image: [B]."""
    return F.mse_loss(a, b, reduction="none").flatten(1).mean(1)

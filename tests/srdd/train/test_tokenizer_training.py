import copy
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srdd.errors import UserError
from srdd.images import to_float
from srdd.train.config import OptimConfig, TokenizerLossConfig
from srdd.train.loop import Log, checkpoint_hook, fit
from srdd.train.task import Batch
from srdd.train.var.codebook import (
    EntropyTerm,
    entropy_gap,
    keep_scales,
    log_assignment,
    quantize,
)
from srdd.train.var.tokenizer_task import TokenizerTask
from srdd.train.workers import ALONE, Reduce
from srdd.var.config import TokenizerConfig
from srdd.var.tokenizer import Tokenizer

Same = Callable[[Any, Any], None]
SIDES = (1, 2, 4)
MODEL = TokenizerConfig(
    resolution=8, patch_nums=SIDES, vocab_size=32, z_channels=4, ch=8, ch_mult=(1, 2),
    num_res_blocks=1,
)  # fmt: skip
OPTIM = OptimConfig(steps=10, batch_size=4, lr=3e-3, seed=5)
GAN = {"gan": 0.4, "gan_start": 0.3, "gan_warmup": 0.2, "gan_width": 8}
ALL = {**GAN, "entropy": 0.1, "scale_drop": 0.5, "restart_every": 4, "restart_until": 1.0}


def _images(n: int = 24) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    coarse = torch.rand(n, 3, 2, 2, generator=draw)
    return (F.interpolate(coarse, size=(8, 8), mode="bilinear") * 255).to(torch.uint8)


def _batches(size: int) -> Callable[[int], Iterator[Batch]]:
    inputs = _images()

    def stream(step: int) -> Iterator[Batch]:
        while True:
            index_b = torch.arange(step * size, (step + 1) * size) % len(inputs)
            yield Batch(inputs[index_b], index_b % 3, index_b, size)
            step += 1

    return stream


def _task(optim: OptimConfig = OPTIM, **loss: Any) -> TokenizerTask:
    task = TokenizerTask(MODEL, TokenizerLossConfig(**loss), optim)
    task.seed_codebook(_images())
    return task


class Worker(Reduce):
    """One of two workers that add their tensors."""

    world = 2

    def __init__(self, rank: int, barrier: threading.Barrier, parts: list[Any]) -> None:
        self.rank, self._barrier, self._parts = rank, barrier, parts

    def sum(self, tensor: Tensor) -> Tensor:
        self._parts[self.rank] = tensor.clone()
        self._barrier.wait(timeout=30)
        total: Tensor = self._parts[0] + self._parts[1]
        self._barrier.wait(timeout=30)
        return total


def _together(work: Callable[[Worker], Any]) -> list[Any]:
    barrier, parts = threading.Barrier(2), [None, None]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, Worker(rank, barrier, parts)) for rank in (0, 1)]
        return [future.result(timeout=60) for future in futures]


def _slice(batch: Batch, rank: int) -> Batch:
    part = [t[rank::2] for t in (batch.inputs, batch.labels_b, batch.index_b)]
    return Batch(part[0], part[1], part[2], batch.global_size)


def test_without_further_losses_it_is_the_plain_loss_bit_for_bit(assert_same: Same) -> None:
    """Weights of zero change neither the loss nor a gradient."""
    task = _task()
    batch = next(_batches(4)(0))
    loss, metrics = task.module(batch, 0)
    loss.backward()
    plain = Tokenizer(MODEL)
    plain.load_state_dict(task.tokenizer.state_dict())
    images = to_float(batch.inputs)
    reconstruction, quantized = plain(images)
    l1, l2 = F.l1_loss(reconstruction, images), F.mse_loss(reconstruction, images)
    expected = 0.2 * l1 + 1.0 * l2 + 1.0 * quantized.loss_S.mean()
    expected.backward()
    assert torch.equal(loss, expected)
    for own, other in zip(task.tokenizer.parameters(), plain.parameters(), strict=True):
        assert_same(own.grad, other.grad)
    assert not {"gan", "lpips", "entropy"} & metrics.keys()
    assert sorted(task.state_dict(ALONE)) == ["used_SV"]


def test_beta_is_the_encoders_share_of_the_vq_loss() -> None:
    gradients = []
    for beta in (0.0, 0.25, 0.5):
        task = _task(l1=0.0, l2=0.0, beta=beta)
        task.module(next(_batches(4)(0)), 0)[0].backward()
        weight = task.tokenizer.quant_conv.weight
        gradients.append(torch.zeros(()) if weight.grad is None else weight.grad)
    assert not gradients[0].any()
    assert gradients[1].any()
    torch.testing.assert_close(gradients[2], 2 * gradients[1])


def test_scales_are_dropped_by_seed_step_and_sample() -> None:
    index_b = torch.arange(4000)
    keep_BS = keep_scales(index_b, 4, 0.4, 7, 3)
    assert keep_BS[:, -1].all()
    rates = keep_BS[:, :3].double().mean(0).tolist()
    assert rates == pytest.approx([0.8] * 3, abs=0.03)
    whole = float(keep_BS.all(1).double().mean())  # six in ten are spared, the rest seldom
    assert whole == pytest.approx(0.6 + 0.4 / 8, abs=0.03)
    order = torch.randperm(4000)[:20]
    assert torch.equal(keep_scales(order, 4, 0.4, 7, 3), keep_BS[order])
    assert not torch.equal(keep_scales(index_b, 4, 0.4, 7, 4), keep_BS)
    assert not torch.equal(keep_scales(index_b, 4, 0.4, 8, 3), keep_BS)
    assert keep_scales(index_b, 4, 0.0, 7, 3).all()


def test_a_scale_left_out_adds_nothing_and_costs_nothing() -> None:
    """Each image is quantised as by a loop over the scales that it kept."""
    quantizer = _task().tokenizer.quantizer
    f = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    keep_BS = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    found, _ = quantize(quantizer, f, beta=0.25, keep_BS=keep_BS, keep_share=0.75)
    losses = torch.zeros(3)
    for i in range(3):
        rest, built = f[i : i + 1], torch.zeros(1, 4, 4, 4)
        for scale, side in enumerate(SIDES):
            if keep_BS[i, scale]:
                z = F.adaptive_avg_pool2d(rest, side).flatten(2)[0].T
                codes = torch.cdist(z, quantizer.codebook.weight).argmin(1)
                h = quantizer.codebook.weight[codes].T.reshape(1, 4, side, side)
                step = quantizer.increment(h, side)
                rest, built = rest - step, built + step
                share = 1.0 if scale == 2 else 0.75
                losses[scale] += 1.25 * (built - f[i]).square().mean() / share / 3
                begin, end = quantizer.schedule.spans[scale]
                assert torch.equal(found.codes_BL[i, begin:end], codes)
        torch.testing.assert_close(found.f_hat[i], built[0])
        torch.testing.assert_close(found.f_rest[i], rest[0])
    torch.testing.assert_close(found.loss_S, losses)
    kept, _ = quantize(quantizer, f, beta=0.25, keep_BS=torch.ones_like(keep_BS))
    whole = quantizer(f, 0.25)
    assert torch.equal(kept.codes_BL, whole.codes_BL)
    torch.testing.assert_close(kept.f_hat, whole.f_hat)
    torch.testing.assert_close(kept.loss_S, whole.loss_S)


def test_codes_of_a_scale_left_out_are_not_counted() -> None:
    task = _task(scale_drop=0.8)
    batch = next(_batches(24)(0))
    task.module(batch, 2)
    keep_BS = keep_scales(batch.index_b, 3, 0.8, OPTIM.seed, 2)
    cells = torch.tensor([side * side for side in SIDES])
    assert torch.equal(task.module.used_SV.sum(1), keep_BS.sum(0) * cells)
    assert 0 < int(keep_BS[:, 0].sum()) < 24


def test_the_entropy_gap_at_its_ends() -> None:
    """Decided and spread out is best; undecided, or decided for one code, is worst."""
    decided, undecided = torch.eye(8), torch.full((8, 8), 1 / 8)
    one = torch.zeros(8, 8)
    one[:, 3] = 1
    for share_nV, expected in ((decided, -math.log(8)), (undecided, 0.0), (one, 0.0)):
        gap = entropy_gap(share_nV.clamp_min(1e-30).log(), share_nV.mean(0))
        assert float(gap) == pytest.approx(expected, abs=1e-5)


def test_the_entropy_gap_has_the_gradient_of_the_true_one() -> None:
    """Though the mean is held constant: d(-H(m)) = log m + 1, and shares sum to one."""
    logits = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    share = logits.softmax(1)
    gap = entropy_gap(logits.log_softmax(1), share.mean(0).detach())
    found = torch.autograd.grad(gap, logits)[0]
    true = torch.special.entr(share).sum(1).mean() - torch.special.entr(share.mean(0)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(true, logits)[0])


def test_soft_assignments_follow_relative_distances() -> None:
    draw = torch.Generator().manual_seed(4)
    z_nC, codebook_VC = torch.randn(6, 3, generator=draw), torch.randn(9, 3, generator=draw)
    share_nV = log_assignment(z_nC, codebook_VC, 0.1).exp()
    distance = torch.cdist(z_nC, codebook_VC).square()
    relative = distance / distance.mean(1, keepdim=True)
    torch.testing.assert_close(share_nV, (-relative / 0.1).softmax(1), rtol=1e-3, atol=1e-5)
    scaled = log_assignment(100 * z_nC, 100 * codebook_VC, 0.1).exp()
    torch.testing.assert_close(scaled, share_nV, rtol=1e-3, atol=1e-5)


def test_a_code_too_far_to_have_a_probability_has_a_finite_gradient() -> None:
    codebook_VC = torch.zeros(200, 2)
    codebook_VC[:, 0] = torch.linspace(0, 1, 200)
    codebook_VC[0] = 1000.0
    codebook_VC.requires_grad_()
    z_nC = torch.rand(5, 2)
    log_nV = log_assignment(z_nC, codebook_VC, 0.1)
    assert not log_nV.exp()[:, 0].any()
    (gradient,) = torch.autograd.grad(entropy_gap(log_nV, torch.full((200,), 1 / 200)), codebook_VC)
    assert torch.isfinite(gradient).all()


def test_the_mean_assignment_is_that_of_global_batches() -> None:
    z_nC, codebook_VC = torch.randn(8, 3), torch.randn(5, 3)
    whole, parts = EntropyTerm(2, 5, 0.1), EntropyTerm(2, 5, 0.1)
    whole(1, z_nC, codebook_VC, 1.0)
    parts(1, z_nC[:6], codebook_VC, 0.75)
    parts(1, z_nC[6:], codebook_VC, 0.25)
    for term in (whole, parts):
        term.update(ALONE)
    torch.testing.assert_close(parts.mean_SV, whole.mean_SV)
    expected = 0.9 / 5 + 0.1 * log_assignment(z_nC, codebook_VC, 0.1).exp().mean(0)
    torch.testing.assert_close(whole.mean_SV[1], expected)


def test_the_entropy_term_spreads_the_codes() -> None:
    """Codes crowded in the middle move apart, so that more of them are nearest to some vector."""
    z_nC = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    codebook_VC = 0.1 * torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
    codebook_VC.requires_grad_()
    term, gaps = EntropyTerm(1, 16, 0.1), []
    for _ in range(60):
        log_nV = log_assignment(z_nC, codebook_VC, 0.1).detach()
        gaps.append(float(entropy_gap(log_nV, log_nV.exp().mean(0))))
        (gradient,) = torch.autograd.grad(term(0, z_nC, codebook_VC, 1.0), codebook_VC)
        codebook_VC.data -= 0.3 * gradient
        term.update(ALONE)
        term.begin()
    assert gaps[-1] < gaps[0] - 0.5


def test_the_entropy_term_trains_encoder_and_codebook() -> None:
    task = _task(l1=0.0, l2=0.0, vq=0.0, entropy=0.5)
    task.module.entropy.mean_SV = torch.rand(3, 32).softmax(1)
    loss, metrics = task.module(next(_batches(4)(0)), 0)
    assert float(loss.detach()) == pytest.approx(0.5 * float(metrics["entropy"].detach()))
    loss.backward()
    assert task.tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0
    assert task.tokenizer.quantizer.codebook.weight.grad.abs().sum() > 0


def _conv_out_gradients(task: TokenizerTask, batch: Batch, step: int) -> list[Tensor]:
    """Of the reconstruction's loss and the adversarial one, for a whole batch."""
    adversary = task.module.adversary
    images = to_float(batch.inputs)
    reconstruction, _ = task.tokenizer(images)
    seen = 0.2 * F.l1_loss(reconstruction, images) + F.mse_loss(reconstruction, images)
    gan = adversary.generator_loss(reconstruction, batch.index_b, step)
    weight = task.tokenizer.decoder.conv_out.weight
    return [torch.autograd.grad(x, weight, retain_graph=True)[0] for x in (seen, gan)]


def test_the_adversarial_loss_joins_with_its_weight() -> None:
    """Before its start it is absent; then the gradient at the last layer is the weighted sum."""
    task = _task(**GAN)
    batch = next(_batches(4)(0))
    weight = task.tokenizer.decoder.conv_out.weight
    task.module.adversary.ratio = 0.7
    loss, metrics = task.module(batch, 2)
    assert float(metrics["gan"]) == 0
    first, second = _conv_out_gradients(task, batch, 5)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], first)
    loss, metrics = task.module(batch, 5)  # past start (3) and warm-up (2)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], first + 0.4 * 0.7 * second)
    assert float(metrics["gan"].detach()) != 0
    task.after_step(batch, 5, ALONE)
    expected = first.norm() / (second.norm() + 1e-4)
    assert task.module.adversary.ratio == pytest.approx(float(expected.clamp(0.015, 1e4)), rel=1e-4)


def test_the_discriminator_is_no_weight_of_the_module() -> None:
    task = _task(**ALL)
    assert {id(p) for p in task.module.parameters()} == {id(p) for p in task.tokenizer.parameters()}
    assert not any("discriminator" in name for name in task.module.state_dict())
    task.module(next(_batches(4)(0)), 5)[0].backward()
    assert all(p.grad is None for p in task.module.adversary.discriminator.parameters())
    task.module.to("meta")
    assert all(p.is_meta for p in task.module.adversary.discriminator.parameters())
    assert task.module.entropy.mean_SV.is_meta


def _run(resume: Any = None, optim: OptimConfig = OPTIM, **loss: Any) -> tuple[Any, Any]:
    """States after every second step, and what is logged at every step."""
    states: dict[int, Any] = {}
    logs: dict[int, Any] = {}
    fit(
        _task(optim, **loss), optim, _batches(optim.batch_size), resume=resume,
        log=Log(write=lambda step, m: logs.update({step: m}), every=1),
        hooks=[checkpoint_hook(2, lambda at, state: states.update({at: copy.deepcopy(state)}))],
    )  # fmt: skip
    return states, logs


def test_a_killed_adversarial_run_resumes_exactly(assert_same: Same) -> None:
    """Killed before the discriminator begins, at its first steps and after."""
    whole, logs = _run(**ALL)
    assert logs[10]["gan_d_loss"] > 0
    assert logs[10]["gan_ratio"] >= 0.015
    assert logs[3]["gan"] == 0
    first = whole[2]["task"]["adversary"]["discriminator"]["main.0.weight"]
    last = whole[10]["task"]["adversary"]["discriminator"]["main.0.weight"]
    assert not torch.equal(first, last)
    for killed in (2, 4, 8):
        resumed, later = _run(copy.deepcopy(whole[killed]), **ALL)
        assert_same(resumed, {step: state for step, state in whole.items() if step > killed})
        assert_same(later, {step: m for step, m in logs.items() if step > killed})


def _gan_step(task: TokenizerTask, parts: list[Batch], reduce: Any) -> dict[str, Any]:
    """A step's forward passes and upkeep, without an update of the tokenizer."""
    for part in parts:
        task.module(part, 5)
    task.after_step(parts[-1], 5, reduce)
    state: dict[str, Any] = copy.deepcopy(task.state_dict(reduce))
    return state


def _assert_near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Up to rounding. Adam's first step has each gradient's sign alone: compare its moments."""
    for key in ("ratio", "logged"):
        assert found["adversary"][key] == pytest.approx(expected["adversary"][key], rel=1e-4)
    moments = [state["adversary"]["optimizer"]["state"] for state in (found, expected)]
    for own, other in zip(moments[0].values(), moments[1].values(), strict=True):
        bound = 1e-4 * float(other["exp_avg"].abs().max())
        torch.testing.assert_close(own["exp_avg"], other["exp_avg"], rtol=1e-3, atol=bound)
        assert other["exp_avg"].any() or other["exp_avg"].dim() == 1  # the last bias: they cancel
    torch.testing.assert_close(found["entropy_mean_SV"], expected["entropy_mean_SV"])
    assert torch.equal(found["used_SV"], expected["used_SV"])


def test_two_workers_train_the_discriminator_as_one_does(assert_same: Same) -> None:
    """Shares of 4 and 3 of 7 samples."""
    settings = {**ALL, "restart_every": 0}
    tasks = [_task(**settings) for _ in range(3)]
    whole = next(_batches(7)(0))
    expected = _gan_step(tasks[0], [whole], ALONE)
    found = _together(lambda w: _gan_step(tasks[w.rank + 1], [_slice(whole, w.rank)], w))
    assert_same(found[0], found[1])
    _assert_near(found[0], expected)


def test_parts_of_a_batch_train_the_discriminator_as_the_whole_does() -> None:
    settings = {**ALL, "restart_every": 0}
    whole = next(_batches(7)(0))
    expected = _gan_step(_task(**settings), [whole], ALONE)
    parts = [_slice(whole, rank) for rank in (0, 1)]
    _assert_near(_gan_step(_task(**settings), parts, ALONE), expected)


def test_a_step_without_upkeep_leaves_nothing_behind(assert_same: Same) -> None:
    """The loop leaves out a step that is not finite."""
    settings = {**ALL, "restart_every": 0}
    spoilt, clean = _task(**settings), _task(**settings)
    batches = _batches(4)(0)
    spoilt.module(next(batches), 4)
    spoilt.module.used_SV.zero_()
    batch = next(batches)
    assert_same(_gan_step(spoilt, [batch], ALONE), _gan_step(clean, [batch], ALONE))


def test_lpips_without_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"lpips is 0\.5"):
        _task(lpips=0.5).module(next(_batches(4)(0)), 0)


@torch.no_grad()
def test_lpips_joins_with_its_weight() -> None:
    class Distance(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().flatten(1).sum(1)

    task = TokenizerTask(MODEL, TokenizerLossConfig(lpips=0.5), OPTIM, Distance())  # type: ignore[arg-type]
    plain = TokenizerTask(MODEL, TokenizerLossConfig(), OPTIM)
    batch = next(_batches(4)(0))
    (loss, metrics), (base, _) = task.module(batch, 0), plain.module(batch, 0)
    assert float(metrics["lpips"]) == pytest.approx(192 * float(metrics["l1"]), rel=1e-5)
    assert float(loss) == pytest.approx(float(base) + 0.5 * float(metrics["lpips"]), rel=1e-5)


def test_all_remedies_together_still_learn() -> None:
    optim = replace(OPTIM, steps=40, batch_size=8, lr=1e-2, weight_decay=0.0)
    _, logs = _run(optim=optim, **ALL)
    assert logs[40]["l2"] < 0.7 * logs[1]["l2"]


def test_half_precision_parts_and_averages_go_with_all_of_it(assert_same: Same) -> None:
    """Quantisation and the discriminator stay in float32: their state is as precise as ever."""
    optim = replace(OPTIM, precision="bfloat16", accumulate=2, ema=0.9)
    states, logs = _run(optim=optim, **ALL)
    assert all(math.isfinite(value) for value in logs[10].values())
    assert states[10]["task"]["entropy_mean_SV"].dtype == torch.float32
    resumed, _ = _run(copy.deepcopy(states[6]), optim=optim, **ALL)
    assert_same(resumed[10], states[10])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("entropy", -0.1), ("entropy_temperature", 0.0), ("scale_drop", 1.1), ("lpips", -1.0),
        ("gan", -1.0), ("gan_start", 2.0), ("gan_warmup", -0.1), ("gan_lr", 0.0),
        ("gan_width", 0), ("gan_layers", -1), ("gan_augment", 1.5),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{field} must be"):
        TokenizerLossConfig(**{field: value})

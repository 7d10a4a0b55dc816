import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from srdd.var.phi import PhiBank
from srdd.var.quantize import MultiScaleQuantizer
from srdd.var.scales import ScaleSchedule

VAR_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES = (1, 2, 3, 5)


def _quantizer(
    patch_nums: tuple[int, ...] = SIDES, parent: tuple[int, ...] = (), num_phi: int = 4
) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(ScaleSchedule(patch_nums, parent), 64, 6, num_phi)
    return quantizer.requires_grad_(False)


def _vars_choice(si: int, scales: int, num_phi: int) -> int:
    """VAR's PhiPartiallyShared, as written there."""
    if num_phi == 4:
        ticks = np.linspace(1 / 3 / num_phi, 1 - 1 / 3 / num_phi, num_phi)
    else:
        ticks = np.linspace(1 / 2 / num_phi, 1 - 1 / 2 / num_phi, num_phi)
    return int(np.argmin(np.abs(ticks - si / (scales - 1))).item())


def test_phi_of_the_published_schedule() -> None:
    """Sides 3 and 10 are exact ties that rounding decides."""
    expected = dict(zip(VAR_256, (0, 0, 1, 1, 1, 2, 2, 3, 3, 3), strict=True))
    assert PhiBank(ScaleSchedule(VAR_256), 4).conv_of == expected


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 14), st.integers(1, 10))
def test_phi_is_chosen_by_vars_rule(scales: int, num_phi: int) -> None:
    schedule = ScaleSchedule(tuple(range(1, scales + 1)))
    chosen = PhiBank(schedule, 1, num_phi).conv_of
    assert [chosen[p] for p in schedule.patch_nums] == [
        _vars_choice(si, scales, num_phi) for si in range(scales)
    ]


def test_pruning_keeps_each_survivors_phi() -> None:
    """By position, side 3 would change its convolution under the first, 13 under the second."""
    whole = _quantizer(VAR_256)
    h = torch.randn(1, 6, 13, 13)
    for kept in ((1, 3, 5, 8, 13, 16), (1, 5, 8, 13, 16)):
        pruned = _quantizer(kept, parent=VAR_256)
        pruned.load_state_dict(whole.state_dict())
        for side in kept:
            grid = h[:, :, :side, :side] if side <= 13 else torch.randn(1, 6, 16, 16)
            assert torch.equal(pruned.increment(grid, side), whole.increment(grid, side))
    by_position = _quantizer((1, 5, 8, 13, 16))
    by_position.load_state_dict(whole.state_dict())
    assert not torch.allclose(by_position.increment(h, 13), whole.increment(h, 13))


def test_phi_blends_half_and_half() -> None:
    bank = PhiBank(ScaleSchedule(SIDES), 6)
    h = torch.randn(2, 6, 5, 5)
    conv = bank.convs[bank.conv_of[3]]
    torch.testing.assert_close(bank(h, 3), (h + conv(h)) / 2)


def test_encoding_is_the_residual_algorithm() -> None:
    """VAR's Algorithm 1, written out with a plain search."""
    quantizer = _quantizer()
    f = torch.randn(3, 6, 5, 5)
    codes_BL = quantizer.encode(f)
    book = quantizer.codebook.weight
    rest = f.double()
    for side, (begin, end) in zip(SIDES, quantizer.schedule.spans, strict=True):
        z = rest if side == 5 else F.adaptive_avg_pool2d(rest, side)
        distance = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 6), book.double())
        nearest = distance.argmin(1).view(3, -1)
        assert torch.equal(codes_BL[:, begin:end], nearest)
        h = book[nearest].transpose(1, 2).reshape(3, 6, side, side)
        if side != 5:
            h = F.interpolate(h, size=(5, 5), mode="bicubic", align_corners=False)
        rest = rest - quantizer.phi(h, side).double()


def test_increments_sum_to_the_decoded_map() -> None:
    quantizer = _quantizer()
    codes_BL = torch.randint(64, (3, quantizer.schedule.length))
    increments = quantizer.increments(codes_BL)
    assert len(increments) == len(SIDES)
    assert torch.equal(sum(increments[1:], increments[0]), quantizer.decode(codes_BL))


def test_what_the_scales_leave_and_build_sum_to_the_latent() -> None:
    quantizer = _quantizer()
    f = torch.randn(3, 6, 5, 5)
    quantized = quantizer(f)
    torch.testing.assert_close(quantized.f_hat + quantized.f_rest, f)
    assert torch.equal(quantized.codes_BL, quantizer.encode(f))
    torch.testing.assert_close(quantized.f_hat, quantizer.decode(quantized.codes_BL))


def test_codes_of_a_built_latent_are_found_again() -> None:
    """With phi's convolutions equal to the identity and one scale, encode undoes decode."""
    quantizer = _quantizer((5,))
    for conv in quantizer.phi.convs:
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[:, :, 1, 1] = torch.eye(6)
    codes_BL = torch.randint(64, (4, 25))
    assert torch.equal(quantizer.encode(quantizer.decode(codes_BL)), codes_BL)


def test_more_scales_leave_less() -> None:
    quantizer = _quantizer()
    for conv in quantizer.phi.convs:
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[:, :, 1, 1] = torch.eye(6)
    f = quantizer.codebook.weight[torch.randint(64, (2, 25))].transpose(1, 2).reshape(2, 6, 5, 5)
    quantized = quantizer(f + 0.01 * torch.randn_like(f))
    assert quantized.loss_S[-1] < quantized.loss_S[0]


def test_the_teachers_input_is_the_cumulative_map_at_each_scale() -> None:
    quantizer = _quantizer()
    codes_BL = torch.randint(64, (2, quantizer.schedule.length))
    tokens_BlC = quantizer.teacher_input(codes_BL)
    assert tokens_BlC.shape == (2, quantizer.schedule.length - 1, 6)
    f_hat = torch.zeros(2, 6, 5, 5)
    for s, increment in enumerate(quantizer.increments(codes_BL)[:-1]):
        f_hat = f_hat + increment
        begin, end = quantizer.schedule.spans[s + 1]
        block = F.adaptive_avg_pool2d(f_hat, SIDES[s + 1]).flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokens_BlC[:, begin - 1 : end - 1], block)


def test_the_last_codes_are_no_input() -> None:
    quantizer = _quantizer()
    codes_BL = torch.randint(64, (2, quantizer.schedule.length))
    other = codes_BL.clone()
    other[:, quantizer.schedule.spans[-1][0] :] = 0
    assert torch.equal(quantizer.teacher_input(codes_BL), quantizer.teacher_input(other))


def test_one_scale_has_no_input() -> None:
    quantizer = _quantizer((3,))
    assert quantizer.teacher_input(torch.zeros(2, 9, dtype=torch.int64)).shape == (2, 0, 6)


def test_the_vq_loss_is_vars_and_trains_what_it_should() -> None:
    quantizer = _quantizer().requires_grad_(True)
    f = torch.randn(2, 6, 5, 5, requires_grad=True)
    quantized = quantizer(f, beta=0.25)
    increments = quantizer.increments(quantized.codes_BL)
    f_hat = torch.zeros_like(f)
    for s, increment in enumerate(increments):
        f_hat = f_hat + increment.detach()
        error = (f_hat - f).square().mean()
        assert quantized.loss_S[s].item() == pytest.approx(1.25 * error.item(), rel=1e-5)
    quantized.loss_S.mean().backward()
    expected = 0
    f_hat = torch.zeros_like(f)
    for increment in increments:
        f_hat = f_hat + increment.detach()
        expected = expected + 0.25 * 2 * (f - f_hat) / f.numel() / len(SIDES)
    torch.testing.assert_close(f.grad, expected.detach())
    used = torch.zeros(64, dtype=torch.bool)
    used[quantized.codes_BL.unique()] = True
    assert torch.equal(quantizer.codebook.weight.grad.abs().sum(1) > 0, used)
    assert all(p.grad.abs().sum() > 0 for p in quantizer.phi.parameters())


def test_sums_are_in_float32() -> None:
    quantizer = _quantizer()
    f = torch.randn(2, 6, 5, 5)
    half = quantizer(f.half())
    assert half.f_hat.dtype == half.f_rest.dtype == torch.float32
    assert torch.equal(half.codes_BL, quantizer.encode(f.half().float()))


@pytest.mark.parametrize("patch_num", [1, 2, 4, 8])
def test_an_increment_does_not_depend_on_the_batch(patch_num: int) -> None:
    """To the bit: a map alone could take another memory layout, and so another kernel."""
    quantizer = MultiScaleQuantizer(ScaleSchedule((1, 2, 4, 8)), 64, 32)
    codes_Bl = torch.randint(64, (7, patch_num * patch_num))
    with torch.no_grad():
        whole = quantizer.increment(quantizer.grid(codes_Bl, patch_num), patch_num)
        for begin, end in ((0, 1), (6, 7), (0, 2), (3, 7)):
            part = quantizer.increment(quantizer.grid(codes_Bl[begin:end], patch_num), patch_num)
            assert torch.equal(part, whole[begin:end])

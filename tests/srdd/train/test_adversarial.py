import pytest
import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.rng import uniform
from srdd.train.config import OptimConfig, TokenizerLossConfig
from srdd.train.var.adversarial import (
    Adversary,
    Discriminator,
    diff_augment,
    gradient_ratio,
    hinge_discriminator,
    patch_layers,
)

LOSS = TokenizerLossConfig(gan=0.5, gan_start=0.25, gan_warmup=0.2, gan_width=8, gan_layers=1)


def _images(n: int = 4, side: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(n)
    return torch.rand(n, 3, side, side, generator=draw, dtype=torch.float64) * 2 - 1


def test_the_hinge() -> None:
    """Logits beyond the margin on the right side cost nothing."""
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert float(hinge_discriminator(real, fake)) == pytest.approx((0.25 + 0.75) / 2)
    assert float(hinge_discriminator(real, real)) == pytest.approx((0.25 + 2.25) / 2)
    assert float(hinge_discriminator(torch.ones(3), -torch.ones(3))) == 0


def test_the_adaptive_weight_is_the_ratio_of_gradients() -> None:
    """Two losses that are linear in a weight: their gradients are known."""
    weight = torch.ones(2, requires_grad=True)
    first, second = weight @ torch.tensor([3.0, 4.0]), weight @ torch.tensor([0.0, 2.0])
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (first, second)]
    assert float(gradient_ratio(*gradients)) == pytest.approx(5 / 2.0001)
    assert float(gradient_ratio(torch.zeros(2), torch.ones(2))) == pytest.approx(0.015)
    assert float(gradient_ratio(torch.full((2,), 9e9), torch.zeros(2))) == pytest.approx(1e4)


def _augmented_by_hand(image: Tensor, draws: list[float]) -> Tensor:
    """One image, pixel by pixel."""
    side = image.shape[-1]
    x = image + (draws[3] - 0.5)
    grey = x.mean(0, keepdim=True)
    x = grey + (x - grey) * 2 * draws[4]
    x = x.mean() + (x - x.mean()) * (0.5 + draws[5])
    reach, hole = round(side / 8), round(side / 5)
    down, right = (int(draws[i] * (2 * reach + 1)) - reach for i in (6, 7))
    top, left = (int(draws[i] * (side + 1 - hole % 2)) - hole // 2 for i in (8, 9))
    out = torch.zeros_like(image)
    for row in range(side):
        for column in range(side):
            source = (row + down, column + right)
            cut = top <= row < top + hole and left <= column < left + hole
            if min(source) >= 0 and max(source) < side and not cut:
                out[:, row, column] = x[:, source[0], source[1]]
    return out


def test_diffaug_does_what_its_draws_say() -> None:
    images, index_b = _images(6, 16), torch.arange(10, 16)
    found = diff_augment(images, index_b, seed=3, step=7)
    for i, image in enumerate(images):
        draws = uniform(index_b[i], torch.arange(10), 3, 7, 0xA06).tolist()
        torch.testing.assert_close(found[i], _augmented_by_hand(image, draws))


def test_diffaug_is_keyed_by_seed_step_and_sample() -> None:
    images, index_b = _images(), torch.tensor([5, 3, 8, 1])
    first = diff_augment(images, index_b, 0, 0)
    assert torch.equal(first, diff_augment(images, index_b, 0, 0))
    order = torch.tensor([2, 0])
    torch.testing.assert_close(first[order], diff_augment(images[order], index_b[order], 0, 0))
    for seed, step, shift in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not torch.equal(first, diff_augment(images, index_b + shift, seed, step))
    torch.testing.assert_close(diff_augment(images, index_b, 0, 0, probability=0.0), images)


def test_diffaug_changes_each_image_with_its_probability() -> None:
    images, index_b = torch.full((2000, 3, 8, 8), 0.5), torch.arange(2000)
    changed = (diff_augment(images, index_b, 0, 0, 0.3) != images).flatten(1).any(1)
    # A translation by nothing and one in nine holes... leave some unchanged.
    assert 0.5 < float(changed.double().mean()) < 1 - 0.7**3 + 0.03


def test_gradients_pass_through_diffaug() -> None:
    images = _images(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, torch.arange(2), 0, 1), (images,))


@torch.no_grad()
def test_the_discriminator_judges_each_image_alone() -> None:
    model = Discriminator(8, 2)
    images = _images(3, 16).float()
    logits = model(images)
    assert logits.shape == (3, 1, 2, 2)
    torch.testing.assert_close(model(images[1:2]), logits[1:2])


@pytest.mark.parametrize(("side", "layers"), [(256, 3), (32, 3), (16, 2), (8, 1), (6, 1)])
def test_levels_fit_the_images(side: int, layers: int) -> None:
    loss = TokenizerLossConfig(gan=1.0)
    assert patch_layers(loss, side) == layers
    assert Discriminator(8, layers)(torch.zeros(1, 3, side, side)).numel() >= 1
    with pytest.raises(UserError, match="gan_layers"):
        patch_layers(TokenizerLossConfig(gan_layers=8), side)


def test_images_too_small_for_any_level_are_refused() -> None:
    with pytest.raises(UserError, match="4 px"):
        patch_layers(TokenizerLossConfig(gan=1.0), 4)


def test_the_weight_begins_late_and_grows() -> None:
    """20 steps: none in the first 5, then 4 of warm-up."""
    adversary = Adversary(LOSS, OptimConfig(steps=20), 8)
    assert [adversary.active(step) for step in (0, 4, 5, 19)] == [False, False, True, True]
    assert adversary.weight(19) == 0  # no gradients seen
    adversary.ratio = 2.0
    found = [adversary.weight(step) for step in (4, 5, 6, 8, 9, 19)]
    assert found == pytest.approx([0, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_it_learns_to_tell_them_apart() -> None:
    """Black images are real, white ones are not."""
    from dataclasses import replace

    from srdd.train.workers import ALONE

    adversary = Adversary(replace(LOSS, gan_lr=3e-3), OptimConfig(steps=30, lr=1.0), 8)
    layer, index_b = torch.ones(2, requires_grad=True), torch.arange(8)
    black, white = -torch.ones(8, 3, 8, 8), torch.ones(8, 3, 8, 8)
    for step in range(30):
        losses = (layer.sum(), 2 * layer.sum())
        adversary.observe(black, white, index_b, 1.0, losses, layer)
        adversary.update(step, ALONE)
    assert adversary.logged["gan_real"] > 0.5
    assert adversary.logged["gan_fake"] < -0.5
    assert adversary.ratio == pytest.approx(0.5, rel=1e-3)
    assert not any(p.requires_grad for p in adversary.discriminator.parameters())
    assert float(adversary.generator_loss(white, index_b, 30)) > 0.5

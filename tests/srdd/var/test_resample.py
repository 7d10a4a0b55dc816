"""Drawing codes in two steps, a group and one of it, against the inverse CDF of one step."""

import pytest
import torch
from torch import Tensor

from srdd import SamplerConfig
from srdd.var.categorical import draw

PLAIN = SamplerConfig()
VOCABS = [2, 3, 7, 97, 128, 144, 4096, 4099]  # prime, square, neither
LAST = 1 - 2.0**-32  # the largest uniform that the hash gives


def _inverse_cdf(probs_nV: Tensor, uniform_n: Tensor) -> tuple[Tensor, Tensor]:
    """The code, and how far the uniform lies from the next boundary."""
    cdf_nV = probs_nV.double().cumsum(-1)
    cdf_nV = cdf_nV / cdf_nV[:, -1:]
    codes_n = (cdf_nV <= uniform_n[:, None]).sum(-1)
    return codes_n, (cdf_nV - uniform_n[:, None]).abs().amin(-1)


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("kept", [1.0, 0.3])
def test_draws_are_those_of_the_one_step_inverse_cdf(vocab: int, kept: float) -> None:
    """On 10^5 rows (of small vocabularies), all but those whose uniform lies on a boundary."""
    rows = 100_000 if vocab < 1000 else 5000
    probs_nV = torch.randn(rows, vocab).mul_(2).softmax(-1)
    probs_nV *= torch.rand(rows, vocab) < kept
    probs_nV[:, 0] += (probs_nV.sum(-1) == 0).float()  # one code is always left
    uniform_n = torch.randint(2**32, (rows,)).double() * 2.0**-32
    expected, distance = _inverse_cdf(probs_nV, uniform_n)
    drawn = draw(probs_nV, uniform_n, PLAIN)
    assert (probs_nV.gather(1, drawn[:, None]) > 0).all()
    assert not ((drawn != expected) & (distance > 1e-12)).any()
    assert int((distance <= 1e-12).sum()) < 10  # so the exception excuses next to nothing


@pytest.mark.parametrize("vocab", VOCABS)
def test_frequencies_are_the_probabilities(vocab: int) -> None:
    """Evenly spaced uniforms meet each code as often as its probability says, to one draw."""
    count = 20_000
    probs_V = torch.randn(vocab).mul(3).softmax(-1)
    probs_V[torch.rand(vocab) < 0.2] = 0
    probs_V[vocab // 2] = 0.5
    even_n = torch.arange(count, dtype=torch.float64).add(0.5).div(count)
    drawn = torch.cat(
        [draw(probs_V.expand(len(part), vocab), part, PLAIN) for part in even_n.split(2000)]
    )
    found = torch.bincount(drawn, minlength=vocab).double()
    expected = probs_V.double() / probs_V.double().sum() * count
    assert (found - expected).abs().max() <= 1 + 1e-6
    assert (found[probs_V == 0] == 0).all()
    assert (drawn.diff() >= 0).all()


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("uniform", [0.0, 2.0**-32, 0.5, LAST])
@pytest.mark.parametrize("value", [1.0, 1e-30, 1e-45])
def test_an_only_code_is_drawn_wherever_it_stands(vocab: int, uniform: float, value: float) -> None:
    """In the first group, the last one, and at the edges of either; subnormal too."""
    for code in {0, 1, vocab // 2, vocab - 2, vocab - 1}:
        probs_nV = torch.zeros(1, vocab)
        probs_nV[0, code] = value
        assert int(draw(probs_nV, torch.full((1,), uniform, dtype=torch.float64), PLAIN)) == code


@pytest.mark.parametrize("vocab", VOCABS)
def test_codes_of_probability_zero_are_never_drawn_at_the_ends_of_the_range(vocab: int) -> None:
    """Rows of few codes, of probabilities far apart: the least and the last are drawn."""
    rows = 1000
    probs_nV = torch.rand(rows, vocab) * 10 ** -(torch.rand(rows, vocab) * 20)
    probs_nV *= torch.rand(rows, vocab) < 3 / vocab
    probs_nV[torch.arange(rows), torch.randint(vocab, (rows,))] += 1e-3
    allowed = probs_nV > 0
    least = allowed.float().argmax(-1)
    last = vocab - 1 - allowed.flip(-1).float().argmax(-1)
    zero, one = torch.zeros(rows).double(), torch.ones(rows).double()
    assert torch.equal(draw(probs_nV, zero, PLAIN), least)
    largest = draw(probs_nV, one * LAST, PLAIN)
    assert torch.equal(largest, _inverse_cdf(probs_nV, one * LAST)[0])
    beyond = draw(probs_nV, one * (1 - 2.0**-53), PLAIN)  # of a float64 that no hash gives
    assert allowed.gather(1, beyond[:, None]).all()
    assert (beyond <= last).all()


def test_rows_keep_their_shape() -> None:
    probs = torch.rand(2, 3, 4, 12)
    uniform = torch.rand(2, 3, 4).double()
    drawn = draw(probs, uniform, PLAIN)
    assert drawn.dtype == torch.int64
    flat = draw(probs.view(-1, 12), uniform.flatten(), PLAIN)
    assert torch.equal(drawn.flatten(), flat)
    assert draw(probs[:0], uniform[:0], PLAIN).shape == (0, 3, 4)

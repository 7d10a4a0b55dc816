import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.nn.autoencoder import Upsample, decode_chunk, in_chunks
from srdd.var.config import TokenizerConfig
from srdd.var.tokenizer import Tokenizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (8, 8), (7, 4)])
@pytest.mark.parametrize("channels", [1, 6, 16])
def test_upsampling_by_phases_is_nearest_then_the_convolution(
    layout: torch.memory_format, size: tuple[int, int], channels: int
) -> None:
    layer = Upsample(channels).to(memory_format=layout)
    x = torch.randn(3, channels, *size).contiguous(memory_format=layout)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(doubled, layer.conv.weight, layer.conv.bias, padding=1)
    assert layer.conv.bias.abs().min() > 0
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-6)
    layer.prepare()
    with torch.no_grad():
        found = layer(x)
    assert found.shape == (3, channels, 2 * size[0], 2 * size[1])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def _trained(layer: Upsample) -> None:
    layer.train()
    layer.conv.weight.mul_(2)


def _loaded(layer: Upsample) -> None:
    layer.load_state_dict(Upsample(64).state_dict())


def _bias_alone(layer: Upsample) -> None:
    layer.conv.bias.add_(1)


@pytest.mark.parametrize("change", [_trained, _loaded, _bias_alone])
def test_a_prepared_layer_follows_training_and_loading(
    change: Callable[[Upsample], None],
) -> None:
    layer, x = Upsample(64).eval(), torch.randn(2, 64, 3, 3)
    with torch.no_grad():
        layer.prepare()
        before = layer(x)
        change(layer)
        found = layer(x)
        again = copy.deepcopy(layer)(x)
    torch.testing.assert_close(found, layer(x).detach(), atol=1e-4, rtol=1e-5)
    assert torch.equal(again, found)
    assert not torch.equal(found, before)


def test_preparing_is_no_state() -> None:
    layer = Upsample(4)
    names = list(layer.state_dict())
    layer.prepare()
    assert list(layer.state_dict()) == names
    layer.to(torch.float64)
    with torch.no_grad():
        assert layer(torch.randn(1, 4, 3, 3, dtype=torch.float64)).dtype == torch.float64


def test_upsampling_with_gradients_is_trainable() -> None:
    layer = Upsample(4)
    layer(torch.randn(1, 4, 3, 3)).square().sum().backward()
    assert layer.conv.weight.grad is not None
    assert layer.conv.weight.grad.abs().min() > 0


@pytest.fixture(scope="module", params=[8, 32, 128])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Chunks of 32, 32 and 4 images."""
    torch.manual_seed(0)
    config = TokenizerConfig(
        resolution=request.param,
        patch_nums=(1, request.param // 4),
        vocab_size=8,
        z_channels=4,
        ch=8,
        ch_mult=(1, 1, 2),
        num_res_blocks=1,
    )
    return Tokenizer(config).eval().requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
def test_decoding_gives_the_same_bits_in_any_batch(tokenizer: Tokenizer, batch: int) -> None:
    """Of the first images, the last ones, and those in the middle of 32."""
    side = tokenizer.config.patch_nums[-1]
    count = 32 if side < 32 else 9
    f_hat = torch.randn(count, 4, side, side)
    whole = tokenizer.decode_latent(f_hat)
    assert whole.is_contiguous()
    assert len(whole) == count
    for begin in (0, 2, count - batch):
        rows = slice(begin, begin + batch)
        assert torch.equal(tokenizer.decode_latent(f_hat[rows]), whole[rows])
    with torch.enable_grad():  # the layers one by one, as in training
        plain = tokenizer.pixels(f_hat).clamp(-1, 1)
    torch.testing.assert_close(whole, plain, atol=1e-5, rtol=1e-5)


def test_every_call_of_the_decoder_has_one_size_on_cpu() -> None:
    sizes: list[int] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x + 1

    for batch in (0, 1, 31, 32, 33, 70):
        x = torch.randn(batch, 2)
        sizes.clear()
        found = in_chunks(Spy(), x, decode_chunk(32, batch, CPU))
        assert torch.equal(found, x + 1)
        assert sizes == [8] * max(1, -(-batch // 8))


def test_a_chunk_bounds_the_pixels_decoded_at_once() -> None:
    assert [decode_chunk(r, 1, CPU) for r in (8, 32, 64, 128, 256, 512)] == [8, 8, 8, 2, 1, 1]
    assert [decode_chunk(r, 99, CPU) for r in (8, 256)] == [8, 1]
    assert [decode_chunk(256, b, CUDA) for b in (1, 7, 16, 99)] == [1, 7, 16, 16]
    assert [decode_chunk(128, b, CUDA) for b in (1, 99)] == [1, 64]

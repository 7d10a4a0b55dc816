"""Every way of attending to all scales at once, against softmax under a dense bias."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srdd import Pipeline, SamplerConfig, sample
from srdd.errors import UserError
from srdd.var.attention import Backend, KVCache, attend_scales, choose_backend
from srdd.var.config import TransformerConfig
from srdd.var.mask_tensors import build_mask
from srdd.var.masks import MASKS, Mask, attention_spans
from srdd.var.scales import ScaleSchedule
from srdd.var.transformer import ScaleTransformer

MakePipeline = Callable[..., Pipeline]
SCHEDULE = ScaleSchedule((1, 2, 8, 9))  # windows of 7 codes a side are not the whole scale
CPU_BACKENDS: list[Backend] = ["scales", "dense", "flex"]
INEXPRESSIBLE = [
    ("flex", "markov_local"),
    ("varlen", "block_causal"),
    ("varlen", "previous"),
    ("varlen", "markov_local"),
]
EXPRESSIBLE = [(b, m) for b in CPU_BACKENDS for m in MASKS if (b, m) not in INEXPRESSIBLE]
ON_CUDA = [(b, m) for b in ("flex", "varlen") for m in MASKS if (b, m) not in INEXPRESSIBLE]


def _qkv(device: str = "cpu", head: int = 8) -> list[Tensor]:
    draw = torch.Generator().manual_seed(2)
    shape = (3, 2, 2, SCHEDULE.length, head)
    return [
        part.to(device).requires_grad_() for part in torch.randn(shape, generator=draw).unbind()
    ]


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
    bias_LL = torch.zeros(SCHEDULE.length, SCHEDULE.length)
    bias_LL = bias_LL.masked_fill(~build_mask(mask, SCHEDULE), -torch.inf).to(q)
    return (q @ k.transpose(-1, -2) * scale + bias_LL).softmax(-1) @ v


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize(("backend", "mask"), EXPRESSIBLE)
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
def test_a_backend_attends_as_the_dense_bias_does(
    backend: Backend, mask: Mask, scale: float
) -> None:
    with torch.no_grad():
        q, k, v = (part.detach() for part in _qkv())
        found = attend_scales(q, k, v, mask, SCHEDULE, backend, scale)
        torch.testing.assert_close(found, _reference(q, k, v, mask, scale), atol=2e-6, rtol=1e-5)
        other = "previous" if mask == "block_causal" else "block_causal"
        assert (found - _reference(q, k, v, other, scale)).abs().max() > 0.05


def _gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    return torch.autograd.grad((out * weight).sum(), inputs)


@pytest.mark.parametrize("backend", ["scales", "dense"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_backends_gradients_are_those_of_the_dense_bias(backend: Backend, mask: Mask) -> None:
    inputs = _qkv()
    found = _gradients(attend_scales(*inputs, mask, SCHEDULE, backend, 0.7), inputs)
    for own, dense in zip(found, _gradients(_reference(*inputs, mask, 0.7), inputs), strict=True):
        torch.testing.assert_close(own, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_half_precision_on_cpu_is_trained_through_attention_in_float32(mask: Mask) -> None:
    """Its own backward pass there is slow and less exact."""
    half = [part.detach().bfloat16().requires_grad_() for part in _qkv()]
    exact = [part.detach().float().requires_grad_() for part in half]
    with torch.autocast("cpu", torch.bfloat16):
        out = attend_scales(*half, mask, SCHEDULE, "scales", 0.7)
    wanted = attend_scales(*exact, mask, SCHEDULE, "scales", 0.7)
    assert torch.equal(out, wanted.bfloat16())
    (out.float() * wanted.detach()).sum().backward()
    (wanted * wanted.detach()).sum().backward()
    for own, full in zip(half, exact, strict=True):
        assert own.grad is not None
        assert full.grad is not None
        torch.testing.assert_close(own.grad.float(), full.grad, atol=1e-2, rtol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("backend", "mask"), ON_CUDA)
def test_values_and_gradients_on_cuda(backend: Backend, mask: Mask) -> None:
    dtype, atol = (torch.float32, 2e-3) if backend == "flex" else (torch.bfloat16, 5e-2)
    inputs = _qkv("cuda", head=32)
    reference = _reference(*inputs, mask, 0.2)
    found = attend_scales(*(p.to(dtype) for p in inputs), mask, SCHEDULE, backend, 0.2).float()
    torch.testing.assert_close(found, reference, atol=atol, rtol=atol)
    pairs = zip(_gradients(found, inputs), _gradients(reference, inputs), strict=True)
    for own, dense in pairs:
        torch.testing.assert_close(own, dense, atol=atol * float(dense.abs().max()), rtol=atol)


@pytest.mark.parametrize(("backend", "mask"), INEXPRESSIBLE)
def test_a_mask_that_a_backend_cannot_express_is_refused(backend: Backend, mask: Mask) -> None:
    with pytest.raises(UserError, match=f"'{backend}' cannot express mask '{mask}'"):
        attend_scales(*_qkv(), mask, SCHEDULE, backend, 1.0)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [30, 680, 5000])
def test_the_choice_never_falls_on_a_backend_that_cannot(
    mask: Mask, device: str, dtype: torch.dtype, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    chosen = choose_backend(mask, length, _like(device, dtype, 64))
    assert (chosen, mask) not in INEXPRESSIBLE
    assert device == "cuda" or chosen == "scales"  # the one with gradients there


@pytest.mark.parametrize(
    ("capability", "head", "expected"),
    [((9, 0), 64, "varlen"), ((8, 0), 256, "varlen"), ((7, 5), 64, "scales"),
     ((9, 0), 20, "scales"), ((9, 0), 264, "scales")],
)  # fmt: skip
def test_varlen_is_chosen_only_where_its_kernel_runs(
    capability: tuple[int, int], head: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert choose_backend("markov", 680, _like("cuda", torch.float16, head)) == expected


def _like(device: str, dtype: torch.dtype, head: int) -> Any:
    """What the choice looks at of a tensor."""
    return SimpleNamespace(is_cuda=device == "cuda", dtype=dtype, shape=(1, 2, 3, head), device=0)


@pytest.mark.parametrize("mask", MASKS)
def test_a_models_logits_and_gradients_do_not_depend_on_the_backend(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    model = make_pipeline(mask, SCHEDULE.patch_nums, fresh=True).transformer
    model.requires_grad_(True).quantizer.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    codes_BL = torch.randint(32, (2, SCHEDULE.length))
    logits, gradients = [], []
    for backend in ("dense", "scales"):
        model.backend = backend
        logits.append(model(torch.tensor([1, 4]), codes_BL))
        loss = torch.nn.functional.cross_entropy(logits[-1].flatten(0, 1), codes_BL.flatten())
        gradients.append(torch.autograd.grad(loss, parameters))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    for dense, own in zip(*gradients, strict=True):
        assert dense.abs().max() > 1e-4
        torch.testing.assert_close(own, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_sampling_looks_through_the_same_windows(make_pipeline: MakePipeline, cfg: float) -> None:
    """The likeliest codes scale by scale are those of the dense mask, all scales at once."""
    pipeline = make_pipeline("markov_local", SCHEDULE.patch_nums, fresh=True)
    model, labels_B = pipeline.transformer, torch.arange(3)
    config = SamplerConfig(cfg=cfg, cfg_ramp="constant", top_k=1)
    codes_BL = sample(pipeline, labels_B, config, [1, 2, 3]).codes_BL
    model.backend = "dense"
    logits, null = model(labels_B, codes_BL), model(torch.full((3,), 5), codes_BL)
    assert torch.equal(((1 + cfg) * logits - cfg * null).argmax(-1), codes_BL)
    whole = make_pipeline("markov", SCHEDULE.patch_nums).transformer  # the same weights
    assert not torch.equal(whole(labels_B, codes_BL).argmax(-1), logits.argmax(-1))


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the base class's name
        out = func(*args, **(kwargs or {}))
        parts = out if isinstance(out, tuple | list) else [out]
        self.numel = max([self.numel, *(p.numel() for p in parts if isinstance(p, Tensor))])
        return out


def test_markov_makes_no_tensor_of_all_pairs_of_codes() -> None:
    """Neither forward nor backward; the dense backend, which does, shows that it would be seen."""
    config = TransformerConfig(
        patch_nums=(1, 2, 4, 8, 16, 32),
        mask="markov",
        num_classes=2,
        depth=2,
        width=8,
        num_heads=1,
        vocab_size=16,
        z_channels=4,
    )
    model, length = ScaleTransformer(config), config.schedule.length
    codes_BL = torch.randint(16, (1, length))
    largest: dict[str, int] = {}
    for backend in (None, "dense"):
        model.backend = backend
        with Largest() as seen:
            model(torch.tensor([1]), codes_BL).sum().backward()
        largest[str(backend)] = seen.numel
    assert largest["None"] < length**2 / 10
    assert largest["dense"] >= length**2


@pytest.mark.parametrize("write", [True, False])
def test_a_cache_of_some_images_is_written_like_a_whole_one(write: bool) -> None:
    """Whatever its memory layout, what a scale writes is what later ones see."""
    seen = attention_spans("block_causal", ScaleSchedule((1, 2, 3)))
    whole = KVCache.empty((2, 2, 5, 2, 4), seen[-1].end, torch.zeros(()))
    whole.keys.normal_()
    whole.values.normal_()
    rows = slice(1, 4)
    part = KVCache(whole.keys[:, :, rows], whole.values[:, :, rows])
    copy = whole.select(torch.arange(1, 4))
    k, v = torch.randn(2, 6, 2, 4, 4)  # both halves of three images
    assert part.extend(1, k, v, seen[1], write)[0].shape == (6, 2, 5, 4)
    found = copy.extend(1, k, v, seen[1], write)
    for a, b in zip(found, part.extend(1, k, v, seen[1], write), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[:, :, 1:], k if a is found[0] else v)
    assert torch.equal(copy.keys, whole.keys[:, :, rows])
    own = whole.keys[1, :, rows, :, 1:5].flatten(0, 1)
    assert torch.equal(own, k) == write
    assert torch.equal(found[0][:, :, :1], whole.keys[1, :, rows, :, :1].flatten(0, 1))

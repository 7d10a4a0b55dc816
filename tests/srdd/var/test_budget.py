"""Budgets of the sampling loop on a GPU, counted on meta tensors: no device is needed.

A meta tensor takes every branch that a CUDA tensor takes, and raises where a value is read back.

A kernel is an operation that is no view; its traffic is the bytes of its inputs and outputs; live
memory is what has been made and not yet freed. Markov, d16 at 256 px, batch 64, guidance on.
"""

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from srdd import Pipeline, SamplerConfig
from srdd.graph import run_loop
from srdd.nn.autoencoder import Decoder
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
GB = 1e9
_COPIES = {"aten._to_copy.default", "aten.copy_.default"}


def _bytes(tensor: Tensor) -> int:
    """What reading it moves: an expanded dimension is read once."""
    seen = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return torch.Size(seen).numel() * tensor.element_size()


class Meter(TorchDispatchMode):
    """Counts kernels, traffic, casts, copies from the host, and live bytes at the peak."""

    def __init__(self, live: int = 0) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.traffic = {"transformer": 0, "decoder": 0}
        self.casts = self.from_host = 0
        self.live = self.peak = live
        self.part = "transformer"
        self._storages: set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        ins = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if any(x.is_cpu for x in ins) and any(x.is_meta for x in outs):
            self.from_host += 1
        if not any(x.is_meta for x in outs):
            return out
        if func.is_view or func.namespace == "prim" or str(func) == "aten._unsafe_view.default":
            return out
        made = str(func) in {"aten.empty.memory_format", "aten.new_empty.default"}
        if not made:
            self.kernels[str(func)] += 1
            moved = sum(map(_bytes, ins)) + sum(map(_bytes, outs))
            self.traffic[self.part] += moved
            if str(func) in _COPIES and len({x.dtype for x in ins + outs}) > 1:
                self.casts += moved
        for tensor in outs:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._storages:
                self._storages.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, *, scale: Any = None) -> Any:
    """What CUDA runs in half precision without a mask: flash up to heads of 256, else another."""
    assert mask is None
    if q.shape[-1] <= 256:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
    one = [part.unsqueeze(1) for part in (q, k, v)]
    return torch.ops.aten._scaled_dot_product_efficient_attention(*one, None, False)[0].squeeze(1)


@pytest.fixture(scope="module")
def meter() -> Meter:
    patch = pytest.MonkeyPatch()
    patch.setattr("srdd.var.pipeline.check_match", lambda *_: None)  # it reads the weights
    with torch.device("meta"):
        tokenizer = Tokenizer(TokenizerConfig(resolution=256, patch_nums=PATCH_NUMS))
        model = ScaleTransformer(TransformerConfig(patch_nums=PATCH_NUMS))
        names = tuple(map(str, range(1000)))
        pipeline = Pipeline(tokenizer.eval(), model.eval(), SamplerConfig(), names)
        pipeline.to("meta", torch.bfloat16)
    del pipeline.tokenizer.encoder, pipeline.tokenizer.quant_conv  # sampling needs neither
    with torch.device("meta"), torch.no_grad():
        weights = [*pipeline.tokenizer.parameters(), *pipeline.transformer.parameters()]
        meter = Meter(live=sum(map(_bytes, weights)))
        labels, seeds = torch.zeros(2, 64, dtype=torch.int64).unbind(0)
        decode = Decoder.forward

        def timed(self: Decoder, z: Tensor) -> Tensor:
            meter.part = "decoder"
            image = decode(self, z)
            meter.part = "transformer"
            return image

        patch.setattr(F, "scaled_dot_product_attention", _attend)
        patch.setattr(Decoder, "forward", timed)
        config = SamplerConfig(cfg=1.5, top_k=900, top_p=0.96)
        with meter:
            state, images = run_loop(pipeline, labels, config, seeds)
        assert images.shape == (64, 3, 256, 256)
        assert state.codes_BL.shape == (64, 680)
    patch.undo()
    return meter


def test_kernels_a_call(meter: Meter) -> None:
    assert meter.kernels.total() <= 4300, meter.kernels.most_common(12)


def test_bytes_cast_between_dtypes(meter: Meter) -> None:
    assert meter.casts <= 2 * GB


def test_traffic_of_the_transformer(meter: Meter) -> None:
    assert meter.traffic["transformer"] <= 190 * GB


def test_memory_at_the_peak(meter: Meter) -> None:
    assert meter.peak <= 3 * GB


def test_nothing_is_copied_from_the_host(meter: Meter) -> None:
    """A copy would wait for the device, and a CUDA graph could not hold it.

    Reading a value back raises on meta tensors, so the loop of the fixture does not.
    """
    assert meter.from_host == 0


def test_settings_that_refine_nothing_need_no_host() -> None:
    """MR at a threshold of 0 has no candidates: the loop must not even look."""
    names = tuple(map(str, range(10)))
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("srdd.var.pipeline.check_match", lambda *_: None)
        shared = {"patch_nums": (1, 2), "vocab_size": 16, "z_channels": 8}
        tokenizer = Tokenizer(TokenizerConfig(resolution=4, ch=8, ch_mult=(1, 1), **shared))
        config = TransformerConfig(num_classes=10, depth=1, width=16, num_heads=2, **shared)
        pipeline = Pipeline(tokenizer, ScaleTransformer(config).eval(), SamplerConfig(), names)
        zeros = torch.zeros(2, dtype=torch.int64)
        nothing = SamplerConfig(refine_steps=2, resample_threshold=0.0)
        run_loop(pipeline, zeros, nothing, zeros)
        with pytest.raises(RuntimeError):  # as a refinement would
            run_loop(pipeline, zeros, SamplerConfig(refine_steps=2), zeros)

"""FoundationVision's VAR, run from a checkout of its repository beside our pipeline.

Nothing of it is copied. Its packages have the names ``models``, ``dist`` and ``utils``: they are
imported, kept, and taken out of ``sys.modules`` again.
"""

import contextlib
import importlib
import io
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.sizes import Size
from benchmarks.weights import pipeline_of
from srdd import Pipeline
from srdd.errors import UserError
from srdd.var.mask_tensors import build_mask
from srdd.var.masks import Mask
from srdd.var.official.names import from_var, from_vqvae

_NAMES = ("models", "dist", "utils")
_LAYERS = (
    nn.Linear, nn.LayerNorm, nn.BatchNorm2d, nn.SyncBatchNorm, nn.Conv1d, nn.Conv2d,
    nn.ConvTranspose1d, nn.ConvTranspose2d,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Official:
    """VAR's tokenizer and transformer, in eval mode, without label dropout or stochastic depth."""

    vae: Any
    var: Any
    code: Any  # the module models.var, by whose global name codes are drawn


def load(repo: Path, size: Size, pipeline: Pipeline) -> Official:
    """Build VAR with the weights of ``pipeline``, on its device, in float32.

    Raises:
        UserError: ``repo`` holds no VAR.
    """
    device = pipeline.transformer.pos_embed.device
    warnings.filterwarnings("ignore", message=".*torch.cuda.amp.autocast.*")
    with _imported(repo) as (models, code), contextlib.redirect_stdout(io.StringIO()):
        vae, var = models.build_vae_var(
            device,
            patch_nums=size.patch_nums,
            V=size.vocab_size,
            ch=size.ch,
            num_classes=size.num_classes,
            depth=size.depth,
        )
    var.rng = torch.Generator(device)
    var.cond_drop_rate = 0.0
    for module in var.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    _fill(vae, from_vqvae, pipeline.tokenizer.state_dict())
    _fill(var, lambda one: from_var(one, {}), pipeline.transformer.state_dict())
    vae.eval().requires_grad_(False)
    var.eval().requires_grad_(False)
    return Official(vae, var, code)


def to_pipeline(official: Official, size: Size, mask: Mask) -> Pipeline:
    """Our pipeline with the official state dicts, as ``srdd convert`` maps them."""
    tokenizer = from_vqvae(official.vae.state_dict())
    return pipeline_of(size, mask, tokenizer, from_var(official.var.state_dict(), tokenizer))


def split(size: Size, codes_BL: Tensor) -> list[Tensor]:
    """Codes as VAR holds them: a list, one entry a scale."""
    return list(codes_BL.split([side * side for side in size.patch_nums], dim=1))


@contextlib.contextmanager
def masked(official: Official, size: Size, mask: Mask) -> Iterator[None]:
    """Under ``markov``: the dense bias is block-diagonal and nothing is cached."""
    bias = official.var.attn_bias_for_masking
    before = bias.clone()
    seen_LL = build_mask(mask, size.transformer(mask).schedule).to(bias.device)
    bias.copy_(torch.where(seen_LL, 0.0, -torch.inf))
    layers = [block.attn for block in official.var.blocks]
    if mask == "markov":
        for layer in layers:
            layer.kv_caching = _no_cache
    try:
        yield
    finally:
        bias.copy_(before)
        for layer in layers:
            layer.__dict__.pop("kv_caching", None)


@contextlib.contextmanager
def without_decoder(official: Official) -> Iterator[None]:
    """The sampling loop ends at the latent map."""
    official.vae.fhat_to_img = torch.clone
    try:
        yield
    finally:
        del official.vae.fhat_to_img


def draw(official: Official, labels_B: Tensor, cfg: float, top_k: int, top_p: float) -> Tensor:
    """Images in [0, 1], as its demo draws them."""
    batch = len(labels_B)
    images: Tensor = official.var.autoregressive_infer_cfg(
        B=batch, label_B=labels_B, cfg=cfg, top_k=top_k, top_p=top_p
    )
    return images


@dataclass(frozen=True, slots=True)
class Greedy:
    """A greedy draw: how far the likeliest code led the next one says what a flip means."""

    images: Tensor
    codes_BL: Tensor
    lead_BL: Tensor  # guided logits, largest minus second


@torch.no_grad()
def greedy(official: Official, labels_B: Tensor, cfg: float) -> Greedy:
    """The likeliest code everywhere, read off where VAR draws them."""
    drawn, leads = [], []
    original = official.code.sample_with_top_k_top_p_

    def recorded(logits_BlV: Tensor, **how: Any) -> Tensor:
        top = logits_BlV.topk(2, dim=-1).values
        leads.append(top[..., 0] - top[..., 1])
        out: Tensor = original(logits_BlV, **how)
        drawn.append(out[:, :, 0])
        return out

    official.code.sample_with_top_k_top_p_ = recorded
    try:
        images = draw(official, labels_B, cfg, top_k=1, top_p=0.0)
    finally:
        official.code.sample_with_top_k_top_p_ = original
    return Greedy(images, torch.cat(drawn, 1), torch.cat(leads, 1))


@contextlib.contextmanager
def cache_sizes(official: Official) -> Iterator[list[int]]:
    """Bytes of keys and values that each layer holds when the loop drops them."""
    sizes: list[int] = []
    layers = [block.attn for block in official.var.blocks]

    def watch(layer: Any) -> None:
        original = layer.kv_caching

        def caching(enable: bool) -> None:
            kept = (layer.cached_k, layer.cached_v)
            sizes.extend(t.nbytes for t in kept if t is not None)
            original(enable)

        layer.kv_caching = caching

    for layer in layers:
        watch(layer)
    try:
        yield sizes
    finally:
        for layer in layers:
            del layer.kv_caching


def _no_cache(enable: bool) -> None:
    """In place of ``kv_caching``."""


@torch.no_grad()
def _fill(module: nn.Module, rename: Any, ours: dict[str, Tensor]) -> None:
    """Copy our tensors into the official ones that are converted to them."""
    for name, tensor in module.state_dict().items():
        for own in rename({name: torch.zeros_like(tensor)}):
            tensor.copy_(ours[own].view_as(tensor))


@contextlib.contextmanager
def _imported(repo: Path) -> Iterator[tuple[Any, Any]]:
    """``models`` and ``models.var`` of a checkout; the process is then as it was before."""
    if not (repo / "models" / "var.py").is_file():
        raise UserError(f"{repo} is no checkout of FoundationVision/VAR: it has no models/var.py")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_theirs(name)}
    resets = {layer: layer.reset_parameters for layer in _LAYERS}
    stub = _hub_stub()
    sys.path.insert(0, str(repo))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield importlib.import_module("models"), importlib.import_module("models.var")
    finally:
        sys.path.remove(str(repo))
        for name in [name for name in sys.modules if _is_theirs(name)]:
            del sys.modules[name]
        sys.modules.update(before)
        if stub is not None and sys.modules.get("huggingface_hub") is stub:
            del sys.modules["huggingface_hub"]
        for layer, reset in resets.items():
            layer.reset_parameters = reset  # type: ignore[method-assign]


def _is_theirs(name: str) -> bool:
    return name.split(".")[0] in _NAMES


def _hub_stub() -> types.ModuleType | None:
    """VAR needs one base class of huggingface_hub, which the benchmarks do not."""
    try:
        importlib.import_module("huggingface_hub")
    except ImportError:
        stub = types.ModuleType("huggingface_hub")
        stub.PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {})  # type: ignore[attr-defined]
        sys.modules["huggingface_hub"] = stub
        return stub
    return None

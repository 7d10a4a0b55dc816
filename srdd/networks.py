"""Well-known networks by the names of their tensors, to say what a file holds instead."""

from collections.abc import Callable, Mapping
from typing import Any

State = Mapping[str, Any]


def name_network(state: State) -> str | None:
    """What network a state dict is of, as a person calls it; None where that is not known.

    Args:
        state: tensors by name, without a wrapper's prefix (:func:`srdd.foreign.plain_names`).
    """
    return next((name for name, fits in _KNOWN.items() if fits(state)), None)


def is_inception(state: State) -> bool:
    """Whether it is the Inception of 2015 with 1008 classes, as torch-fidelity takes it."""
    return _LAST_OF_INCEPTION in state and _shape(state, "fc.weight")[:1] == (1008,)


_LAST_OF_INCEPTION = "Mixed_7c.branch1x1.conv.weight"


def _has(*names: str) -> Callable[[State], bool]:
    return lambda state: all(name in state for name in names)


def _begins(*prefixes: str) -> Callable[[State], bool]:
    return lambda state: all(any(n.startswith(prefix) for n in state) for prefix in prefixes)


def _shape(state: State, name: str) -> tuple[int, ...]:
    return tuple(getattr(state.get(name), "shape", ()))


def _shaped(name: str, *shape: int) -> Callable[[State], bool]:
    return lambda state: _shape(state, name) == shape


# The first that fits counts.
_KNOWN: dict[str, Callable[[State], bool]] = {
    "torch-fidelity's Inception": is_inception,
    "torchvision's Inception": _has(_LAST_OF_INCEPTION),
    "HMAR's transformer": _begins("ns_blocks.", "pos_1LC"),
    "HMAR's mask prediction": _has("pos_1LC", "mask_embed.weight"),
    "VAR's transformer": _has("pos_1LC", "lvl_embed.weight"),
    "VAR's tokenizer": _begins("quantize.embedding.", "quantize.quant_resi."),
    "a VQGAN": _begins("quantize.embedding.", "encoder.down."),
    "a tokenizer of srdd": _has("quantizer.codebook.weight", "encoder.conv_in.weight"),
    "a transformer of srdd": _has("pos_embed", "level_embed.weight"),
    "LPIPS with VGG16": lambda state: (
        _begins("lin")(state)
        and any(_begins(conv)(state) for conv in ("features.28.", "net.slice5."))
    ),
    "LPIPS's heads for SqueezeNet": _shaped("lin6.model.1.weight", 1, 512, 1, 1),
    "LPIPS's heads for AlexNet": _shaped("lin1.model.1.weight", 1, 192, 1, 1),
    "LPIPS's heads for VGG16": _shaped("lin1.model.1.weight", 1, 128, 1, 1),
    "VGG19": _shaped("features.34.weight", 512, 512, 3, 3),
    "VGG16": _shaped("features.28.weight", 512, 512, 3, 3),
    "AlexNet": _shaped("features.0.weight", 64, 3, 11, 11),
    "a ResNet": _has("conv1.weight", "layer1.0.conv1.weight"),
    "CLIP": _begins("logit_scale", "visual."),
    "a Stable Diffusion model": _begins("model.diffusion_model.", "first_stage_model."),
    "a U-Net of diffusers": _begins("down_blocks.", "mid_block.", "up_blocks."),
    "an autoencoder of diffusers": _begins("encoder.down_blocks.", "decoder.up_blocks."),
    "an autoencoder of latent diffusion": _begins("encoder.down.", "decoder.up.", "quant_conv."),
    "DiT": _has("x_embedder.proj.weight", "t_embedder.mlp.0.weight"),
    "LlamaGen's transformer": _begins("tok_embeddings.", "layers.0.attention.wqkv."),
    "a vision transformer": _has("cls_token", "patch_embed.proj.weight"),
}

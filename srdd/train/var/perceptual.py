"""LPIPS (Zhang et al. 2018) with VGG16, from weights in a file; nothing is downloaded.

Known layouts, in one file or two:

- torchvision's VGG16, ``features.N.weight`` (its classifier is left out), with LPIPS's heads,
  ``linK.model.1.weight``;
- taming-transformers' and the lpips package's whole module, ``net.sliceK.N.weight`` with
  torchvision's numbers;
- vaex's ``lpips_with_vgg.pth``, the same with numbers that begin anew in each slice, and
  ``lins.K.model.1.weight``.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.foreign import check_tensors, main_state, owned
from srdd.networks import name_network
from srdd.weight_files import read_weights

_SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # torchvision's convolutions
_BEGINS = (0, 4, 9, 16, 23)  # and the first layer of each slice
_WIDTHS = (64, 128, 256, 512, 512)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_SMALLEST_SIDE = 16  # four poolings

_WANTED = "--lpips takes VGG16 with LPIPS's heads, or VGG16 beside --lpips-heads"
_PARTS = (None, "VGG16", "LPIPS with VGG16", "LPIPS's heads for VGG16")  # None: not known yet
_CONV = re.compile(r"(?:net\.)?features\.(\d+)\.(weight|bias)")
_SLICE = re.compile(r"net\.slice([1-5])\.(\d+)\.(weight|bias)")
_HEAD = re.compile(r"(?:lin|lins\.)([0-4])\.model\.1\.weight")


class Lpips(nn.Module):
    """The distance of two batches of images: [B, 3, R, R] in [-1, 1], twice -> [B].

    Its weights are frozen; the gradient flows to the images.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleDict()
        previous = 3
        for numbers, width in zip(_SLICES, _WIDTHS, strict=True):
            for number in numbers:
                self.convs[str(number)] = nn.Conv2d(previous, width, 3, padding=1)
                previous = width
        self.heads = nn.ParameterList(torch.zeros(width) for width in _WIDTHS)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.shift: Tensor
        self.scale: Tensor
        self.requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """The last ReLU of each slice, of unit length at every position."""
        x, found = (images - self.shift) / self.scale, []
        for i, numbers in enumerate(_SLICES):
            if i:
                x = F.max_pool2d(x, 2)
            for number in numbers:
                x = F.relu(self.convs[str(number)](x))
            # A position without any activation has no gradient: it must not become NaN.
            length = x.float().square().sum(1, keepdim=True).clamp_min(1e-20).sqrt()
            found.append(x.float() / (length + 1e-10))
        return found

    def check_size(self, resolution: int) -> None:
        """Refuse images that are too small for VGG16's poolings.

        Raises:
            UserError: they are.
        """
        if resolution < _SMALLEST_SIDE:
            raise UserError(f"LPIPS needs images of {_SMALLEST_SIDE} px, got {resolution} px")

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each pair."""
        self.check_size(a.shape[-1])
        distance_B = a.new_zeros(len(a), dtype=torch.float32)
        pairs = zip(self.features(a), self.features(b), self.heads, strict=True)
        for of_a, of_b, head in pairs:
            difference = (of_a - of_b).square()
            distance_B = distance_B + torch.einsum("bchw,c->bhw", difference, head).mean((1, 2))
        return distance_B


def load_lpips(paths: Sequence[Path]) -> Lpips:
    """LPIPS from its weights: one file with all of it, or VGG16 and the heads.

    Raises:
        UserError: a file is missing or holds something else, or a weight is missing or differs
            under two names.
    """
    found: dict[str, Tensor] = {}
    networks = []
    names = " and ".join(str(path) for path in paths)
    for path in paths:
        state = main_state(read_weights(path, _WANTED))
        networks.append(name_network(state))
        if networks[-1] not in _PARTS:
            raise UserError(f"{path} is {networks[-1]}: {_WANTED}")
        try:
            known = {key: _canonical(key, value) for key, value in state.items()}
            tensors = owned({key: state[key] for key, name in known.items() if name})
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        for key, tensor in tensors.items():
            name = str(known[key])
            value = tensor.flatten() if name.startswith("heads") else tensor
            if name in found and not torch.equal(found[name], value):
                raise UserError(f"{path}: {key} differs from the same weight under another name")
            found[name] = value
    if networks == ["VGG16"] and not any(name.startswith("heads") for name in found):
        raise UserError(f"{names} is VGG16 alone: give LPIPS's heads with --lpips-heads FILE")
    if networks == ["LPIPS's heads for VGG16"]:
        raise UserError(
            f"{names} holds LPIPS's heads alone: give them with --lpips-heads, and VGG16 "
            "(vgg16-397923af.pth) with --lpips"
        )
    model = Lpips()
    wanted = {name: value for name, value in model.state_dict().items() if "." in name}
    try:
        check_tensors(wanted, found)
    except UserError as error:
        raise UserError(f"{names}: {error}; {_WANTED}") from None
    model.load_state_dict({**model.state_dict(), **found})
    return model.eval()


def _canonical(key: str, tensor: Any) -> str | None:
    """Our name of a weight, or None where it is not needed."""
    if match := _HEAD.fullmatch(key):
        return f"heads.{match[1]}"
    if match := _CONV.fullmatch(key):
        number = int(match[1])
        if any(number in numbers for numbers in _SLICES):
            return f"convs.{number}.{match[2]}"
    if match := _SLICE.fullmatch(key):
        i, number = int(match[1]) - 1, int(match[2])
        for candidate in (number, number + _BEGINS[i]):
            if candidate in _SLICES[i]:
                return f"convs.{candidate}.{match[3]}"
    if key.startswith("classifier."):
        return None
    if key in ("scaling_layer.shift", "scaling_layer.scale") and isinstance(tensor, Tensor):
        constants = torch.tensor(_SHIFT if key.endswith("shift") else _SCALE)
        if tensor.numel() == 3 and torch.allclose(tensor.float().flatten(), constants, atol=1e-4):
            return None
        raise UserError(f"{key} is not LPIPS's")
    raise UserError(f"{key!r} is no weight of VGG16 or of LPIPS's heads; {_WANTED}")

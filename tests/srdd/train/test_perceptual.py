from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srdd.errors import UserError
from srdd.train.var.perceptual import load_lpips

# torchvision's VGG16 up to its last ReLU: widths, and a pooling before each slice but the first.
LAYERS = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]


def _numbers() -> list[list[int]]:
    """The convolutions' numbers in torchvision's ``features``, slice by slice."""
    slices: list[list[int]] = [[]]
    number = 0
    for layer in LAYERS:
        if layer == "M":
            slices.append([])
            number += 1
        else:
            slices[-1].append(number)
            number += 2
    return slices


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """By torchvision's names, and the heads by LPIPS's."""
    draw = torch.Generator().manual_seed(0)
    found, previous = {}, 3
    widths = [layer for layer in LAYERS if layer != "M"]
    numbers = [number for part in _numbers() for number in part]
    for number, width in zip(numbers, widths, strict=True):
        assert isinstance(width, int)
        scale = (2 / (9 * previous)) ** 0.5
        found[f"features.{number}.weight"] = (
            torch.randn(width, previous, 3, 3, generator=draw) * scale
        )
        found[f"features.{number}.bias"] = torch.randn(width, generator=draw) * 0.1
        previous = width
    for k, width in enumerate((64, 128, 256, 512, 512)):
        found[f"lin{k}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=draw)
    return found


def _expected(weights: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """LPIPS in its paper's words: unit vectors, squared differences, weighted, averaged."""
    total = torch.zeros(len(a))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((i - shift[:, None, None]) / scale[:, None, None] for i in (a, b))
    for k, numbers in enumerate(_numbers()):
        if k:
            x, y = F.max_pool2d(x, 2, 2), F.max_pool2d(y, 2, 2)
        for number in numbers:
            own = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
            x, y = (F.conv2d(i, *own, padding=1).relu() for i in (x, y))
        difference = (F.normalize(x) - F.normalize(y)) ** 2
        head = weights[f"lin{k}.model.1.weight"]
        total += F.conv2d(difference, head).mean((1, 2, 3))
    return total


def _taming(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The lpips package has each head under two names."""
    renamed = {n: t for n, t in weights.items() if n.startswith("lin")}
    renamed |= {n.replace("lin", "lins."): t for n, t in renamed.items()}
    for k, numbers in enumerate(_numbers()):
        for number in numbers:
            for part in ("weight", "bias"):
                renamed[f"net.slice{k + 1}.{number}.{part}"] = weights[f"features.{number}.{part}"]
    renamed["scaling_layer.shift"] = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    renamed["scaling_layer.scale"] = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    return renamed


def _vaex(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {f"lins.{k}.model.1.weight": weights[f"lin{k}.model.1.weight"] for k in range(5)}
    for k, numbers in enumerate(_numbers()):
        for i, number in enumerate(numbers):
            place = 2 * i + (k > 0)  # behind the pooling
            for part in ("weight", "bias"):
                renamed[f"net.slice{k + 1}.{place}.{part}"] = weights[f"features.{number}.{part}"]
    return renamed


@pytest.mark.parametrize("layout", ["two", "one", "taming", "vaex"])
def test_lpips_from_every_layout(weights: dict[str, Tensor], tmp_path: Path, layout: str) -> None:
    paths = [tmp_path / "a.pth"]
    if layout == "two":
        paths.append(tmp_path / "b.pth")
        vgg = {n: t for n, t in weights.items() if n.startswith("features")}
        torch.save({**vgg, "classifier.0.weight": torch.zeros(2)}, paths[0])
        torch.save({n: t for n, t in weights.items() if n.startswith("lin")}, paths[1])
    else:
        renamed = {"one": dict, "taming": _taming, "vaex": _vaex}[layout](weights)
        torch.save(renamed, paths[0])
    model = load_lpips(paths)
    draw = torch.Generator().manual_seed(5)
    a, b = (torch.rand(2, 3, 16, 16, generator=draw) * 2 - 1 for _ in range(2))
    found = model(a, b)
    torch.testing.assert_close(found, _expected(weights, a, b), rtol=1e-4, atol=1e-6)
    assert float(found.min()) > 0.01
    assert not any(p.requires_grad for p in model.parameters())
    if layout == "one":
        b.requires_grad_()
        model(a, b).sum().backward()
        assert torch.isfinite(b.grad).all()
        assert b.grad.abs().sum() > 0
        assert model(a, a).tolist() == [0, 0]
        with pytest.raises(UserError, match="8 px"):
            model(a[..., :8, :8], a[..., :8, :8])


def _refused(tmp_path: Path, state: object) -> str:
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(UserError) as caught:
        load_lpips([path])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_weights_are_refused_by_name(weights: dict[str, Tensor], tmp_path: Path) -> None:
    heads = {n: t for n, t in weights.items() if n.startswith("lin")}
    assert "LPIPS's heads alone: give them with --lpips-heads" in _refused(tmp_path, heads)
    cut = {n: t for n, t in weights.items() if n != "features.5.bias"}
    assert "missing convs.5.bias; --lpips takes" in _refused(tmp_path, cut)
    assert "'features.1.weight'" in _refused(tmp_path, {"features.1.weight": torch.zeros(1)})
    assert "'layer1.0.conv1'" in _refused(tmp_path, {**heads, "layer1.0.conv1": torch.zeros(1)})
    shifted = {"scaling_layer.shift": torch.zeros(3)}
    assert "scaling_layer.shift" in _refused(tmp_path, {**heads, **shifted})
    assert "holds a list, not tensors by name; --lpips takes" in _refused(tmp_path, [1, 2])
    broken = {**weights, "lin2.model.1.weight": torch.zeros(1, 255, 1, 1)}
    assert "heads.2 [255] (needs [256])" in _refused(tmp_path, broken)
    twice = {**weights, "lins.2.model.1.weight": torch.zeros(1, 256, 1, 1)}
    assert "lins.2.model.1.weight differs" in _refused(tmp_path, twice)
    (tmp_path / "text.pth").write_text("hello")
    for path in (tmp_path / "text.pth", tmp_path / "absent.pth"):
        with pytest.raises(UserError, match=path.name):
            load_lpips([path])

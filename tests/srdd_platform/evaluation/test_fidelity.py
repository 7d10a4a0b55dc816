"""Feature extractors: their names, their weights, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srdd.checkpoint import save_model
from srdd.errors import UserError
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd_platform.evaluation.extractors import (
    Extractor,
    classifier_name,
    import_torch_fidelity,
    load_extractor,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "images",
    [torch.rand(2, 3, 16, 16), torch.zeros(2, 1, 16, 16).byte(), torch.zeros(3, 16, 16).byte()],
    ids=["float", "grey", "one image"],
)
def test_images_of_another_kind_are_refused(extractor: Extractor, images: Tensor) -> None:
    with pytest.raises(UserError, match=r"uint8 images \[n, 3, R, R\], got"):
        extractor(images)


def test_features_do_not_depend_on_the_batches(
    extractor: Extractor, digits: dict[str, tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = digits["val"][0][:20]
    whole = extractor(images)
    for sizes in (7, [1, 12, 7], 20):
        given = extractor(iter(images.split(sizes)))
        assert torch.equal(given.features_nD, whole.features_nD)
        assert torch.equal(given.logits_nK, whole.logits_nK)
    monkeypatch.setattr("srdd_platform.evaluation.extractors.BATCH", 7)
    parts = extractor(images)
    assert torch.allclose(parts.features_nD, whole.features_nD, atol=1e-5)
    assert torch.allclose(parts.logits_nK, whole.logits_nK, atol=1e-5)


@pytest.mark.parametrize("sizes", [[1] * 23, [23], [4, 19], [0, 5, 0, 18], [6, 6, 6, 5]])
def test_the_network_sees_batches_of_one_size(
    extractor: Extractor, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every image once, in its order."""
    monkeypatch.setattr("srdd_platform.evaluation.extractors.BATCH", 6)
    seen: list[Tensor] = []
    make = Extractor._features

    def watched(self: Extractor, images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(images)
        return make(self, images)

    monkeypatch.setattr(Extractor, "_features", watched)
    images = torch.randint(256, (23, 3, 16, 16), dtype=torch.uint8)
    extractor(iter(images.split(sizes)))
    assert [len(batch) for batch in seen] == [6, 6, 6, 5]
    assert torch.equal(torch.cat(seen), images)


def broken_classifier(directory: Path, value: float, parameter: str) -> Path:
    torch.manual_seed(5)
    config = ClassifierConfig(num_classes=10, resolution=16, ch=8, features=16)
    state = Classifier(config).state_dict()
    state[parameter][0] = value
    save_model(directory, "classifier", config, state)
    return directory


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    found = load_extractor(
        "classifier", broken_classifier(tmp_path / "c", float("nan"), "norms.3.bias")
    )
    with pytest.raises(FloatingPointError, match=r"classifier-[0-9a-f]{8} gave features"):
        found(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_the_name_carries_the_weights(tmp_path: Path) -> None:
    one = broken_classifier(tmp_path / "one", 0.0, "head.bias")
    other = broken_classifier(tmp_path / "other", 0.5, "head.bias")
    names = [classifier_name(path) for path in (one, other)]
    assert names[0] != names[1]
    for path, name in zip((one, other), names, strict=True):
        found = load_extractor("classifier", path)
        assert found.name == name
        images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        assert float(found(images).logits_nK[0, 0]) != 0 or name == names[0]
    gap = [load_extractor("classifier", path)(images).logits_nK[0, 0] for path in (one, other)]
    assert float(gap[1] - gap[0]) == pytest.approx(0.5, abs=1e-5)


def test_a_classifier_is_registered_once_and_loaded_twice(classifier_dir: Path) -> None:
    images = torch.full((2, 3, 16, 16), 90, dtype=torch.uint8)
    first, second = (load_extractor("classifier", classifier_dir) for _ in range(2))
    assert first.name == second.name
    assert torch.equal(first(images).features_nD, second(images).features_nD)


def test_a_run_directory_may_be_given(tmp_path: Path) -> None:
    directory = broken_classifier(tmp_path / "run" / "model", 0.25, "head.bias")
    assert load_extractor("classifier", tmp_path / "run").name == classifier_name(directory)


@pytest.mark.parametrize("name", ["clip", "inception-v3-compat", ""])
def test_an_unknown_extractor_is_refused(name: str, classifier_dir: Path) -> None:
    with pytest.raises(UserError, match="use classifier or inception"):
        load_extractor(name, classifier_dir)


@pytest.mark.parametrize("name", ["classifier", "inception"])
def test_missing_weights_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--extractor {name} needs --weights"):
        load_extractor(name, None)
    with pytest.raises(UserError, match="gone does not exist"):
        load_extractor(name, tmp_path / "gone")


def test_a_model_of_another_kind_is_no_classifier(tiny_pipeline: Path) -> None:
    with pytest.raises(UserError, match="holds a tokenizer, not a classifier"):
        load_extractor("classifier", tiny_pipeline / "tokenizer")


def test_torch_fidelity_imports_beside_any_build_of_torch() -> None:
    """Twice, in a process that has imported nothing before; its pages of metrics too."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "platform")!r}]
from srdd_platform.evaluation.extractors import import_torch_fidelity
first, second = import_torch_fidelity(), import_torch_fidelity()
assert first is second
from torch_fidelity.metric_prc import prc_features_to_metric
print(first.__version__)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == import_torch_fidelity().__version__


def test_a_classifier_may_move(tmp_path: Path) -> None:
    first = broken_classifier(tmp_path / "first", 0.125, "head.bias")
    name = load_extractor("classifier", first).name
    second = first.rename(tmp_path / "second")
    assert load_extractor("classifier", second).name == name


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    found = load_extractor(
        "classifier", broken_classifier(tmp_path / "c", float("nan"), "head.bias")
    )
    with pytest.raises(FloatingPointError):
        found(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_a_file_that_is_no_inception_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"weights\.pth"):
        load_extractor("inception", tmp_path / "weights.pth")

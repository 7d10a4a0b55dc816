"""What models are judged by on held-out data."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from srdd import Pipeline
from srdd.images import to_float
from srdd.metrics.quality import psnr
from srdd.train.var.held_out import reconstruct, tokenizer_quality, transformer_nll, unigram_entropy
from srdd.var.scales import ScaleSchedule

MakePipeline = Callable[..., Pipeline]


def test_unigram_entropy_in_all_and_by_scale() -> None:
    """Scale 1x1: always code 3; 2x2: codes 0 and 1 alike. In all: shares 0.2, 0.4, 0.4."""
    codes_nL = torch.tensor([[3, 0, 1, 0, 1], [3, 1, 1, 0, 0]], dtype=torch.uint16)
    found = unigram_entropy(codes_nL, ScaleSchedule((1, 2)), 8)
    assert found["entropy_1x1"] == 0
    assert found["entropy_2x2"] == pytest.approx(math.log(2))
    expected = -(0.2 * math.log(0.2) + 2 * 0.4 * math.log(0.4))
    assert found["entropy"] == pytest.approx(expected)


def test_a_tokenizers_quality_is_the_mean_over_images(make_pipeline: MakePipeline) -> None:
    tokenizer = make_pipeline().tokenizer
    side = tokenizer.config.resolution
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (131, 3, side, side), generator=draw).to(torch.uint8)
    codes_nL, decoded = reconstruct(tokenizer, images)
    assert torch.equal(codes_nL, tokenizer.encode(to_float(images)))
    found = tokenizer_quality(tokenizer, images, codes_nL, decoded)
    assert found["n"] == 131
    assert found["psnr"] == pytest.approx(float(psnr(images, decoded).mean()))
    assert "ssim" not in found  # images of 8 px have none
    assert found["usage_1x1"] == len(codes_nL[:, 0].unique()) / tokenizer.config.vocab_size


def test_nll_is_the_mean_over_images_whatever_the_batch(make_pipeline: MakePipeline) -> None:
    model = make_pipeline().transformer
    codes_nL = torch.randint(32, (131, 30), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(131) % 3
    found = transformer_nll(model, codes_nL.to(torch.uint16), labels)
    with torch.no_grad():
        logits = model(labels, codes_nL)
    whole = F.cross_entropy(logits.mT, codes_nL)
    assert found["nll"] == pytest.approx(float(whole), rel=1e-5)
    first = F.cross_entropy(logits[:, 0], codes_nL[:, 0])
    assert found["nll_1x1"] == pytest.approx(float(first), rel=1e-5)

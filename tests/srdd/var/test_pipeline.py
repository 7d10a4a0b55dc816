"""What a scale-wise pipeline can do beside sampling."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from srdd import Pipeline, SamplerConfig, sample
from srdd.errors import UserError
from srdd.generator import HasUntrained, Reconstructs
from srdd.images import to_float
from srdd.var.init import init_weights
from srdd.var.transformer import ScaleTransformer

MakePipeline = Callable[..., Pipeline]


def test_a_pipeline_has_the_optional_abilities(make_pipeline: MakePipeline) -> None:
    assert isinstance(make_pipeline(), Reconstructs)
    assert isinstance(make_pipeline(), HasUntrained)
    assert not isinstance(object(), Reconstructs | HasUntrained)


def test_a_reconstruction_is_the_image_of_the_codes(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline()
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    codes_BL = pipeline.tokenizer.encode(to_float(images))
    expected = (pipeline.tokenizer.decode(codes_BL) + 1) / 2 * 255
    found = pipeline.reconstruct(images)
    assert found.dtype == torch.uint8
    assert float((found.double() - expected.double()).abs().max()) <= 0.5
    assert torch.equal(found[2:4], pipeline.reconstruct(images[2:4]))
    with pytest.raises(UserError, match=r"images must be \[B, 3, 8, 8\]"):
        pipeline.reconstruct(images[..., :4])


@pytest.mark.parametrize("seed", [0, 3])
def test_the_untrained_pipeline_has_vars_initial_weights(
    make_pipeline: MakePipeline, seed: int
) -> None:
    pipeline = make_pipeline("block_causal")
    torch.manual_seed(seed)
    expected = ScaleTransformer(pipeline.transformer.config)
    init_weights(expected)
    expected.quantizer.load_state_dict(pipeline.transformer.quantizer.state_dict())
    before = torch.get_rng_state()
    fresh = pipeline.untrained(seed)
    assert torch.equal(torch.get_rng_state(), before)
    found = fresh.transformer.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    assert fresh.tokenizer is pipeline.tokenizer
    assert not fresh.transformer.training
    assert not any(parameter.requires_grad for parameter in fresh.transformer.parameters())
    own = replace(pipeline, transformer=expected.eval())
    drawn = [sample(p, [0, 1, 2], SamplerConfig(), [7, 8, 9]).images for p in (fresh, own)]
    assert torch.equal(drawn[0], drawn[1])


def test_the_untrained_pipeline_has_the_dtypes_of_the_trained(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(fresh=True).to("cpu", torch.bfloat16)
    wanted = {name: p.dtype for name, p in pipeline.transformer.named_parameters()}
    assert set(wanted.values()) == {torch.bfloat16, torch.float32}
    found = pipeline.untrained().transformer.named_parameters()
    assert {name: parameter.dtype for name, parameter in found} == wanted

"""Sampling with codes that are given: for editing, and to start from one's own codes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from srdd import Pipeline, SamplerConfig, sample, sample_stream
from srdd.errors import UserError
from srdd.generator import Given
from srdd.var.masks import MASKS, Mask
from srdd.var.state import SampleState

MakePipeline = Callable[..., Pipeline]
LABELS = torch.tensor([0, 1, 2, 3, 4])
SEEDS = list(range(50, 55))
ENDS = [0, 1, 5, 14, 30]  # of the scales 1, 2, 3, 4
CONFIGS = {
    "plain": SamplerConfig(),
    "guided": SamplerConfig(cfg=2.0, top_k=20),
    "refined": SamplerConfig(cfg=1.0, refine_steps=2, resample_threshold=0.2),
    "simple": SamplerConfig(refine_steps=1, resample="simple", feedback="kept"),
    "none": SamplerConfig(refine_steps=3, resample_threshold=0.3, feedback="none"),
}


def _some(share: float = 0.4) -> Given:
    """Random codes, some of them kept."""
    draw = torch.Generator().manual_seed(3)
    codes_BL = torch.randint(32, (5, 30), generator=draw)
    return Given(codes_BL, torch.rand(5, 30, generator=draw) < share)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_all_codes_given_are_decoded_and_no_network_runs(
    make_pipeline: MakePipeline, mask: Mask, name: str
) -> None:
    pipeline = make_pipeline(mask)
    codes_BL = _some().codes_BL
    found = sample(pipeline, LABELS, CONFIGS[name], SEEDS, Given.prefix(codes_BL))
    assert torch.equal(found.codes_BL, codes_BL)
    assert torch.equal(found.images, (pipeline.tokenizer.decode(codes_BL) + 1) / 2)
    assert found.nfe.tolist() == [0] * 5


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_kept_is_sampling(make_pipeline: MakePipeline, mask: Mask, name: str) -> None:
    pipeline, config = make_pipeline(mask), CONFIGS[name]
    expected = sample(pipeline, LABELS, config, SEEDS)
    nothing = Given(torch.full((5, 30), -7), torch.zeros(5, 30, dtype=torch.bool))
    short = Given.prefix(torch.zeros(5, 0, dtype=torch.int64))
    for given in (nothing, short):
        found = sample(pipeline, LABELS, config, SEEDS, given)
        assert torch.equal(found.codes_BL, expected.codes_BL)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.nfe, expected.nfe)
        assert torch.equal(found.gflops, expected.gflops)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scales", [1, 2, 3])
def test_the_first_scales_of_a_sample_give_the_sample(
    make_pipeline: MakePipeline, mask: Mask, name: str, scales: int
) -> None:
    pipeline, config = make_pipeline(mask), CONFIGS[name]
    expected = sample(pipeline, LABELS, config, SEEDS)
    given = Given.prefix(expected.codes_BL[:, : ENDS[scales]])
    found = sample(pipeline, LABELS, config, SEEDS, given)
    assert torch.equal(found.codes_BL, expected.codes_BL)
    assert torch.equal(found.images, expected.images)
    assert (found.gflops < expected.gflops).all()


@pytest.mark.parametrize("mask", MASKS)
def test_codes_that_are_drawn_see_those_that_are_given(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    """With the likeliest codes alone: they are those of teacher forcing on the codes given."""
    pipeline = make_pipeline(mask)
    given = Given.prefix(_some().codes_BL[:, :5])
    found = sample(pipeline, LABELS, SamplerConfig(top_k=1), SEEDS, given).codes_BL
    likeliest_BL = pipeline.transformer(LABELS, found).argmax(-1)
    assert torch.equal(found[:, :5], given.codes_BL)
    assert torch.equal(found[:, 5:], likeliest_BL[:, 5:])
    assert not torch.equal(found[:, :5], likeliest_BL[:, :5])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_codes_that_are_kept_stay_and_the_others_are_drawn(
    make_pipeline: MakePipeline, mask: Mask, name: str
) -> None:
    pipeline, config, given = make_pipeline(mask), CONFIGS[name], _some()
    found = sample(pipeline, LABELS, config, SEEDS, given)
    assert torch.equal(found.codes_BL[given.keep_BL], given.codes_BL[given.keep_BL])
    share = (found.codes_BL == given.codes_BL)[~given.keep_BL].double().mean()
    assert share < 0.3
    assert torch.equal(found.images, (pipeline.tokenizer.decode(found.codes_BL) + 1) / 2)
    assert len(found.nfe) == 5


def test_the_first_draw_of_a_free_code_is_the_one_without_given_codes(
    make_pipeline: MakePipeline,
) -> None:
    """Within a scale codes do not see each other, so those beside a given one stay."""
    pipeline = make_pipeline()
    expected = sample(pipeline, LABELS, SamplerConfig(), SEEDS).codes_BL
    keep_BL = torch.zeros(5, 30, dtype=torch.bool)
    keep_BL[:, 2] = True
    found = sample(pipeline, LABELS, SamplerConfig(), SEEDS, Given(expected * 0 + 9, keep_BL))
    assert torch.equal(found.codes_BL[:, [0, 1, 3, 4]], expected[:, [0, 1, 3, 4]])
    assert (found.codes_BL[:, 2] == 9).all()
    assert not torch.equal(found.codes_BL[:, 5:], expected[:, 5:])


@pytest.mark.parametrize("policy", ["masked", "simple"])
@pytest.mark.parametrize("feedback", ["updated", "kept", "none"])
def test_refinement_never_draws_a_kept_code_again(
    make_pipeline: MakePipeline, policy: str, feedback: str
) -> None:
    """Though it be the unlikeliest, and the only one left to draw again."""
    pipeline, given = make_pipeline(), _some(0.9)
    config = SamplerConfig(
        refine_steps=4, resample=policy, feedback=feedback, resample_threshold=1.0
    )
    found = sample(pipeline, LABELS, config, SEEDS, given)
    assert torch.equal(found.codes_BL[given.keep_BL], given.codes_BL[given.keep_BL])


@pytest.mark.parametrize(
    ("mask", "cfg", "scales", "nfe"),
    [
        ("markov", 0.0, 2, 2),  # the two scales that are drawn
        ("markov", 1.0, 2, 4),
        ("markov_local", 0.0, 3, 1),
        ("block_causal", 0.0, 2, 4),  # keys and values of the given ones are needed
        ("block_causal", 1.0, 2, 8),
        ("previous", 0.0, 3, 4),
    ],
)
def test_a_scale_given_whole_costs_what_it_runs(
    make_pipeline: MakePipeline, mask: Mask, cfg: float, scales: int, nfe: int
) -> None:
    pipeline = make_pipeline(mask)
    given = Given.prefix(_some().codes_BL[:, : ENDS[scales]])
    calls: list[int] = []
    hidden = type(pipeline.transformer).hidden

    def counted(model: object, x_BlW: Tensor, *args: object, **kwargs: object) -> Tensor:
        calls.append(len(x_BlW) // 5)
        return hidden(model, x_BlW, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipeline.transformer), "hidden", counted)
        found = sample(pipeline, LABELS, SamplerConfig(cfg=cfg), SEEDS, given)
    assert found.nfe.tolist() == [nfe] * 5
    assert sum(calls) == nfe


@pytest.mark.parametrize("mask", MASKS)
def test_an_image_with_given_codes_does_not_depend_on_its_batch(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    """Some have a whole scale given, some a part, some nothing."""
    pipeline, config, given = make_pipeline(mask), CONFIGS["refined"], _some()
    given.keep_BL[0, :14] = True
    given.keep_BL[4] = False
    whole = sample(pipeline, LABELS, config, SEEDS, given)
    for row in range(5):
        alone = Given(given.codes_BL[[row]], given.keep_BL[[row]])
        found = sample(pipeline, LABELS[[row]], config, [SEEDS[row]], alone)
        assert torch.equal(found.codes_BL[0], whole.codes_BL[row])
        assert torch.equal(found.images[0], whole.images[row])


@pytest.mark.parametrize("mask", MASKS)
def test_states_with_given_codes_can_be_joined_and_parted(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    pipeline, config, given = make_pipeline(mask), CONFIGS["refined"], _some()
    given.keep_BL[:2] = False
    whole = sample(pipeline, LABELS, config, SEEDS, given)
    none = pipeline.begin(LABELS[:2], config, SEEDS[:2])
    some = pipeline.begin(
        LABELS[2:], config, SEEDS[2:], Given(given.codes_BL[2:], given.keep_BL[2:])
    )
    state = SampleState.join([pipeline.advance(none), pipeline.advance(some)])
    state = pipeline.advance(state).select(torch.tensor([4, 0, 3]))
    state = pipeline.advance(pipeline.advance(state))
    assert torch.equal(state.codes_BL, whole.codes_BL[[4, 0, 3]])
    assert torch.equal(pipeline.decode(state), whole.images[[4, 0, 3]])


def test_states_of_which_one_has_a_scale_given_whole_are_not_joined(
    make_pipeline: MakePipeline,
) -> None:
    pipeline = make_pipeline()
    plain = pipeline.begin(LABELS, SamplerConfig(), SEEDS)
    other = pipeline.begin(LABELS, SamplerConfig(), SEEDS, Given.prefix(_some().codes_BL[:, :5]))
    with pytest.raises(UserError, match="where the same scales are given whole"):
        SampleState.join([plain, other])


def test_a_pruned_schedule_takes_the_codes_of_its_own_scales(make_pipeline: MakePipeline) -> None:
    pipeline, config = make_pipeline(), SamplerConfig(patch_nums=(1, 2, 4))
    expected = sample(pipeline, LABELS, config, SEEDS)
    given = Given.prefix(expected.codes_BL[:, :5])
    previews = list(sample_stream(pipeline, LABELS, config, SEEDS, given))
    assert torch.equal(torch.cat([each.codes_Bl for each in previews], 1), expected.codes_BL)
    with pytest.raises(UserError, match=r"\[5, 21\], or fewer codes an image, for scales 1,2,4"):
        sample(pipeline, LABELS, config, SEEDS, _some())


def test_no_images_with_given_codes_are_an_empty_result(make_pipeline: MakePipeline) -> None:
    none = Given.prefix(torch.zeros(0, 5, dtype=torch.int64))
    result = sample(make_pipeline(), torch.zeros(0, dtype=torch.int64), None, [], none)
    assert result.codes_BL.shape == (0, 30)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codes_BL": torch.zeros(4, 30, dtype=torch.int64)}, r"must be \[5, 30\].*got \[4, 30\]"),
        ({"codes_BL": torch.zeros(5, 31, dtype=torch.int64)}, r"must be \[5, 30\].*got \[5, 31\]"),
        ({"codes_BL": torch.zeros(5, 30)}, "given codes must be integers, got torch.float32"),
        ({"codes_BL": torch.full((5, 30), 32)}, r"must lie in \[0, 32\): got 32 to 32"),
        ({"codes_BL": torch.full((5, 30), -1)}, r"must lie in \[0, 32\): got -1 to -1"),
        ({"keep_BL": torch.ones(5, 29, dtype=torch.bool)}, r"must be booleans \[5, 30\]"),
        ({"keep_BL": torch.ones(5, 30)}, "booleans .*got torch.float32"),
    ],
)
def test_given_codes_that_do_not_fit_are_refused(
    make_pipeline: MakePipeline, change: dict[str, Tensor], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        sample(make_pipeline(), LABELS, None, SEEDS, replace(_some(), **change))


def test_the_codes_given_are_not_changed(make_pipeline: MakePipeline) -> None:
    given = _some()
    codes_BL, keep_BL = given.codes_BL.clone(), given.keep_BL.clone()
    sample(make_pipeline(), LABELS, CONFIGS["simple"], SEEDS, given)
    assert torch.equal(given.codes_BL, codes_BL)
    assert torch.equal(given.keep_BL, keep_BL)

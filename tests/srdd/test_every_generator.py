"""What holds for every family of generators. A new family adds a case to ``CASES``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import pytest
import torch
from generators import ColourSettings, make_colours
from torch import Tensor

from srdd import Pipeline, SamplerConfig, sample, sample_stream
from srdd.errors import UserError
from srdd.generator import Generator, Given, State

LABELS = [0, 3, 1, 3, 2]
SEEDS = [7, 7, 8, 9, 2**53 - 1]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family under test."""

    make: Callable[[Callable[..., Pipeline]], Generator[Any]]
    settings: Any  # not the default ones, and make images that depend on the seed
    inactive: Sequence[Any] = ()  # settings that differ in what does not bear on the result
    unfit: tuple[Any, str] | None = None  # settings that the model refuses; the name of the wrong


VAR = Case(
    make=lambda make_pipeline: make_pipeline("markov"),
    settings=SamplerConfig(cfg=1.5, refine_steps=2, resample_threshold=0.2),
    inactive=(SamplerConfig(cfg_ramp="constant"), SamplerConfig(cfg_ramp="linear")),
    unfit=(SamplerConfig(top_k=33), "top_k"),
)
CASES = {
    "colours": Case(
        make=lambda _: make_colours(),
        settings=ColourSettings(noise=0.5, steps=4),
        inactive=(ColourSettings(noise=0, steps=1), ColourSettings(noise=0, steps=5)),
        unfit=(ColourSettings(steps=0), "steps"),
    ),
    "markov": VAR,
    "block_causal": Case(
        **{**vars(VAR), "make": lambda make_pipeline: make_pipeline("block_causal")}
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def generator(case: Case, make_pipeline: Callable[..., Pipeline]) -> Generator[Any]:
    return case.make(make_pipeline)


def run(generator: Generator[Any], state: State, until: int | None = None) -> State:
    """A state some steps on; at the end, if no step is named or there are fewer."""
    last = state.num_steps if until is None else min(until, state.num_steps)
    while state.step < last:
        state = generator.advance(state)
    return state


def assert_rows(state: State, images: Tensor, rows: list[int], whole: State, all_: Tensor) -> None:
    """The images, codes and costs of a state are those of some rows of another."""
    torch.testing.assert_close(images, all_[rows], atol=1e-5, rtol=0)
    assert torch.equal(state.codes_BL, whole.codes_BL[rows])
    assert torch.equal(state.cost.nfe_B, whole.cost.nfe_B[rows])
    assert torch.equal(state.cost.flops_B, whole.cost.flops_B[rows])


def test_the_card_says_what_the_images_are(generator: Generator[Any]) -> None:
    card = generator.card
    result = sample(generator, [0, len(card.class_names) - 1])
    assert result.images.shape == (2, 3, card.resolution, card.resolution)
    assert result.images.dtype == generator.dtype
    assert result.images.device == generator.device
    assert 0 <= float(result.images.min()) <= float(result.images.max()) <= 1
    assert card.name
    assert all(type(value) is str for value in card.tags.values())


def test_sampling_is_its_steps_by_hand(case: Case, generator: Generator[Any]) -> None:
    state = generator.begin(LABELS, case.settings, SEEDS)
    steps = [state.step]
    costs = [state.cost.flops_B]
    while state.step < state.num_steps:
        state = generator.advance(state)
        steps.append(state.step)
        costs.append(state.cost.flops_B)
    result = sample(generator, LABELS, case.settings, SEEDS)
    assert steps == list(range(state.num_steps + 1))
    assert torch.equal(generator.decode(state), result.images)
    assert torch.equal(state.codes_BL, result.codes_BL)
    assert torch.equal(state.cost.nfe_B, result.nfe)
    assert result.gflops.tolist() == [flops / 1e9 for flops in state.cost.flops_B.tolist()]
    for before, after in pairwise(costs):
        assert bool((after > before).all())


def test_an_image_has_a_cost_of_its_own(case: Case, generator: Generator[Any]) -> None:
    cost = run(generator, generator.begin(LABELS, case.settings, SEEDS)).cost
    for name in ("nfe_B", "flops_B"):
        values = getattr(cost, name)
        assert (values.dtype, values.device.type) == (torch.int64, "cpu")
        assert values.shape == (len(LABELS),)
        assert bool((values > 0).all())


def test_a_stream_shows_each_step_and_ends_in_the_images(
    case: Case, generator: Generator[Any]
) -> None:
    result = sample(generator, LABELS, case.settings, SEEDS)
    previews = list(sample_stream(generator, LABELS, case.settings, SEEDS))
    num_steps = generator.begin(LABELS, case.settings, SEEDS).num_steps
    assert [preview.step for preview in previews] == list(range(num_steps))
    assert {preview.images.shape for preview in previews} == {result.images.shape}
    assert torch.equal(previews[-1].images, result.images)
    assert torch.equal(torch.cat([p.codes_Bl for p in previews], dim=1), result.codes_BL)


def test_an_image_depends_on_its_class_its_seed_and_the_settings(
    case: Case, generator: Generator[Any]
) -> None:
    def draw(label: int, seed: int, settings: Any) -> Tensor:
        return sample(generator, [label], settings, [seed]).images

    image = draw(1, 5, case.settings)
    assert torch.equal(draw(1, 5, case.settings), image)
    assert not torch.equal(draw(2, 5, case.settings), image)
    assert not torch.equal(draw(1, 6, case.settings), image)
    assert not torch.equal(draw(1, 5, generator.sampler), image)


def test_an_image_does_not_depend_on_what_stands_beside_it(
    case: Case, generator: Generator[Any]
) -> None:
    whole = run(generator, generator.begin(LABELS, case.settings, SEEDS))
    images = generator.decode(whole)
    for row, (label, seed) in enumerate(zip(LABELS, SEEDS, strict=True)):
        alone = run(generator, generator.begin([label], case.settings, [seed]))
        assert_rows(alone, generator.decode(alone), [row], whole, images)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_states_can_be_taken_apart_and_joined_between_steps(
    step: int, case: Case, generator: Generator[Any]
) -> None:
    whole = run(generator, generator.begin(LABELS, case.settings, SEEDS))
    images = generator.decode(whole)
    first = run(generator, generator.begin(LABELS[:2], case.settings, SEEDS[:2]), step)
    second = run(generator, generator.begin(LABELS[2:], case.settings, SEEDS[2:]), step)
    joined = type(first).join([second.select(torch.tensor([False, True, True])), first])
    assert (joined.step, len(joined)) == (min(step, whole.num_steps), 4)
    chosen = joined.select(torch.tensor([3, 1, 0]))
    assert len(chosen) == 3
    done = run(generator, chosen)
    assert_rows(done, generator.decode(done), [1, 4, 3], whole, images)


def test_states_that_differ_in_step_or_settings_are_not_joined(
    case: Case, generator: Generator[Any]
) -> None:
    state = generator.begin([0], case.settings, [1])
    others = [run(generator, state, 1), generator.begin([0], generator.sampler, [1])]
    state = generator.begin([0], case.settings, [1])
    for other in others:
        with pytest.raises(UserError):
            type(state).join([state, other])


def test_codes_that_are_given_are_kept(case: Case, generator: Generator[Any]) -> None:
    codes_BL = sample(generator, LABELS, case.settings, SEEDS).codes_BL
    if not codes_BL.numel():
        with pytest.raises(UserError, match="no codes"):
            generator.begin(LABELS, case.settings, SEEDS, Given.prefix(codes_BL))
        return
    keep_BL = torch.rand(codes_BL.shape) < 0.5
    other_seeds = [seed + 1 for seed in SEEDS]
    given = Given(codes_BL, keep_BL)
    found = sample(generator, LABELS, case.settings, other_seeds, given).codes_BL
    assert torch.equal(found[keep_BL], codes_BL[keep_BL])
    assert not torch.equal(found, codes_BL)
    whole = sample(generator, LABELS, case.settings, other_seeds, Given.prefix(codes_BL))
    again = sample(generator, LABELS, case.settings, SEEDS)
    torch.testing.assert_close(whole.images, again.images, atol=1e-5, rtol=0)


def test_settings_are_fields_of_which_some_are_active(
    case: Case, generator: Generator[Any]
) -> None:
    assert type(generator.sampler) is type(case.settings)
    names = {field.name for field in fields(case.settings)}
    for settings in (generator.sampler, case.settings, *case.inactive):
        generator.check_settings(settings)
        assert settings.active().keys() <= names
    for one, other in pairwise(case.inactive):
        assert one != other
        assert one.active() == other.active()
        results = [sample(generator, LABELS, settings, SEEDS) for settings in (one, other)]
        assert torch.equal(results[0].images, results[1].images)
        assert torch.equal(results[0].gflops, results[1].gflops)


def test_a_class_that_is_not_there_is_refused(case: Case, generator: Generator[Any]) -> None:
    for label in (-1, len(generator.card.class_names) + 1):
        with pytest.raises(UserError, match="classes must lie in"):
            generator.begin([0, label], case.settings, [1, 2])


def test_seeds_that_do_not_match_the_images_are_refused(
    case: Case, generator: Generator[Any]
) -> None:
    with pytest.raises(UserError, match="give one seed an image"):
        generator.begin([0, 1], case.settings, [1])


def test_settings_that_do_not_fit_are_refused_by_name(
    case: Case, generator: Generator[Any]
) -> None:
    if case.unfit is None:
        pytest.skip("a model of this family takes any settings")
    settings, name = case.unfit
    with pytest.raises(UserError, match=name) as refused:
        generator.check_settings(settings)
    assert refused.value.field == name
    with pytest.raises(UserError, match=name):
        generator.begin([0], settings, [1])

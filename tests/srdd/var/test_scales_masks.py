import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srdd.errors import UserError
from srdd.var.mask_tensors import build_mask, neighbourhood
from srdd.var.masks import MASKS, Mask, attention_spans, first_scale_seen
from srdd.var.scales import ScaleSchedule

VAR_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
schedules = st.lists(st.integers(1, 9), min_size=1, max_size=6, unique=True).map(
    lambda sides: ScaleSchedule(tuple(sorted(sides)))
)


def test_the_published_schedule_has_680_codes_on_ten_scales() -> None:
    schedule = ScaleSchedule(VAR_256)
    assert (schedule.length, schedule.num_scales, schedule.side) == (680, 10, 16)
    assert schedule.spans[:3] == ((0, 1), (1, 5), (5, 14))
    assert schedule.spans[-1] == (424, 680)
    assert schedule.parent == VAR_256


@settings(deadline=None, max_examples=50)
@given(schedules)
def test_spans_tile_the_sequence(schedule: ScaleSchedule) -> None:
    ends = [end for _, end in schedule.spans]
    assert [begin for begin, _ in schedule.spans] == [0, *ends[:-1]]
    assert ends[-1] == schedule.length
    assert [end - begin for begin, end in schedule.spans] == [p * p for p in schedule.patch_nums]


@settings(deadline=None, max_examples=50)
@given(schedules, st.data())
def test_pruning_keeps_the_parent_and_each_scales_place_in_it(
    schedule: ScaleSchedule, data: st.DataObject
) -> None:
    assert schedule.prune(schedule.patch_nums) == schedule
    kept = data.draw(st.sets(st.sampled_from(schedule.patch_nums))) | {schedule.side}
    once = schedule.prune(sorted(kept))
    assert once.patch_nums == tuple(sorted(kept))
    assert once.parent == schedule.patch_nums
    assert [schedule.patch_nums[i] for i in once.parent_index] == list(once.patch_nums)
    twice = once.prune([schedule.side])
    assert twice.parent == schedule.patch_nums
    assert twice.parent_index == (schedule.num_scales - 1,)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [((), "positive"), ((0, 2), "positive"), ((2, 1), "increasing"), ((1, 1), "increasing")],
)
def test_a_schedule_that_is_none_is_refused(wrong: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=f"patch_nums must be .*{said}"):
        ScaleSchedule(wrong)


def test_a_pruned_schedule_must_know_its_scales_and_reach_the_latent() -> None:
    schedule = ScaleSchedule(VAR_256)
    with pytest.raises(UserError, match=r"\[7\] are no scales"):
        schedule.prune((1, 7, 16))
    with pytest.raises(UserError, match="must end at the latent side 16"):
        schedule.prune((1, 2, 13))


@settings(deadline=None, max_examples=30)
@given(schedules, st.sampled_from(MASKS))
def test_masks_follow_their_definition(schedule: ScaleSchedule, mask: Mask) -> None:
    """D >= dT, d == dT and d - dT in {0, 1}, written out."""
    d = torch.repeat_interleave(
        torch.arange(schedule.num_scales), torch.tensor([p * p for p in schedule.patch_nums])
    )
    gap_LL = d[:, None] - d
    expected = {"block_causal": gap_LL >= 0, "markov": gap_LL == 0}
    expected["previous"] = (gap_LL == 0) | (gap_LL == 1)
    expected["markov_local"] = expected["markov"].clone()
    for scale in range(max(0, schedule.num_scales - 2), schedule.num_scales):
        begin, end = schedule.spans[scale]
        window = torch.tensor(_window(schedule.patch_nums[scale]))
        expected["markov_local"][begin:end, begin:end] = window
    assert torch.equal(build_mask(mask, schedule), expected[mask])


def _window(side: int) -> list[list[bool]]:
    """Neighbourhood attention in plain loops: the 7x7 window that lies most nearly around a code.

    Among the windows inside the grid the one whose middle is the nearest to the code.
    """
    size = min(7, side)

    def first(place: int) -> int:
        return min(range(side - size + 1), key=lambda begin: abs(begin + size // 2 - place))

    places = [(y, x) for y in range(side) for x in range(side)]
    return [
        [0 <= v - first(y) < size and 0 <= u - first(x) < size for v, u in places]
        for y, x in places
    ]


@pytest.mark.parametrize("side", range(1, 17))
def test_a_neighbourhood_is_the_window_nearest_to_each_code(side: int) -> None:
    near = neighbourhood(side)
    assert near.tolist() == _window(side)
    assert near.diagonal().all()
    assert (near.sum(1) == min(7, side) ** 2).all()  # at the border too
    assert bool(near.all()) == (side <= 7)


def test_local_windows_belong_to_the_parents_finest_two_scales() -> None:
    schedule = ScaleSchedule((1, 9, 10, 11))
    for visited, local in (
        (schedule, [0, 0, 10, 11]),
        (schedule.prune((1, 9, 11)), [0, 0, 11]),  # 9 is among the last two here, not there
        (schedule.prune((1, 10, 11)), [0, 10, 11]),
    ):
        assert [view.local_side for view in attention_spans("markov_local", visited)] == local
        for mask in MASKS:
            if mask != "markov_local":
                assert not any(view.local_side for view in attention_spans(mask, visited))


@settings(deadline=None, max_examples=30)
@given(schedules.filter(lambda schedule: schedule.side <= 7))
def test_windows_as_large_as_the_grid_are_markov(schedule: ScaleSchedule) -> None:
    assert torch.equal(build_mask("markov_local", schedule), build_mask("markov", schedule))


@pytest.mark.parametrize("mask", ["block_causal", "markov"])
@settings(deadline=None, max_examples=30)
@given(schedule=schedules)
def test_depth_does_not_widen_the_view(mask: Mask, schedule: ScaleSchedule) -> None:
    """Layers multiply masks, so a sound mask equals its own square."""
    mask_LL = build_mask(mask, schedule)
    assert torch.equal(mask_LL.float() @ mask_LL.float() > 0, mask_LL)


def test_the_previous_mask_widens_with_depth_until_it_is_causal() -> None:
    schedule = ScaleSchedule((1, 2, 3, 4))
    mask_LL = build_mask("previous", schedule).float()
    reach_LL = mask_LL @ mask_LL
    assert not torch.equal(reach_LL > 0, mask_LL > 0)
    assert torch.equal(reach_LL @ mask_LL > 0, build_mask("block_causal", schedule))


def test_the_shares_of_allowed_pairs_are_the_papers() -> None:
    schedule = ScaleSchedule(VAR_256)
    pairs = {mask: int(build_mask(mask, schedule).sum()) for mask in MASKS}
    assert pairs["markov"] == sum(p**4 for p in VAR_256)
    assert pairs["markov_local"] == sum(p**4 for p in VAR_256[:-2]) + 49 * (13**2 + 16**2)
    assert pairs["block_causal"] / pairs["markov"] == pytest.approx(2.59, abs=0.005)
    assert pairs["block_causal"] / pairs["previous"] == pytest.approx(1.58, abs=0.005)


def test_the_first_scale_sees_itself_alone() -> None:
    assert [first_scale_seen(mask, 0) for mask in MASKS] == [0, 0, 0, 0]
    assert {mask: first_scale_seen(mask, 3) for mask in MASKS} == {
        "block_causal": 0,
        "markov": 3,
        "previous": 2,
        "markov_local": 3,
    }

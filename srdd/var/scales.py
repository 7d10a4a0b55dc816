"""The scale schedule: which grids an image's codes lie on, coarse to fine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from srdd.errors import UserError


@dataclass(frozen=True, slots=True)
class ScaleSchedule:
    """Sides of the square grids visited, coarse to fine; scale s holds ``patch_nums[s]**2`` codes.

    A pruned schedule knows its parent, the one its model was trained with: phi, level embedding,
    guidance ramp and random numbers belong to a scale of the parent (paper, Sec. 3.3).
    """

    patch_nums: tuple[int, ...]
    parent: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.parent:
            object.__setattr__(self, "parent", self.patch_nums)
        check_patch_nums(self.parent)
        check_patch_nums(self.patch_nums)
        _check_known(self.patch_nums, self.parent)
        if self.patch_nums[-1] != self.parent[-1]:
            raise UserError(
                f"patch_nums {list(self.patch_nums)} must end at the latent side {self.parent[-1]}",
                field="patch_nums",
            )

    @property
    def num_scales(self) -> int:
        """S, the scales visited."""
        return len(self.patch_nums)

    @property
    def length(self) -> int:
        """L, the codes of all scales."""
        return sum(side * side for side in self.patch_nums)

    @property
    def side(self) -> int:
        """N, the latent's side: that of the finest scale."""
        return self.patch_nums[-1]

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(begin, end) of each scale in the sequence of L codes."""
        spans, begin = [], 0
        for side in self.patch_nums:
            spans.append((begin, begin + side * side))
            begin += side * side
        return tuple(spans)

    @property
    def parent_index(self) -> tuple[int, ...]:
        """Each visited scale's index in the parent schedule."""
        return tuple(self.parent.index(side) for side in self.patch_nums)

    def prune(self, patch_nums: Sequence[int]) -> "ScaleSchedule":
        """A schedule that visits ``patch_nums`` only and keeps this one's parent.

        Raises:
            UserError: a scale is not of this schedule, they are out of order, or the last is not
                the latent's side.
        """
        check_patch_nums(patch_nums)
        _check_known(patch_nums, self.patch_nums)
        return ScaleSchedule(tuple(patch_nums), self.parent)

    def visit(self, patch_nums: Sequence[int] | None) -> "ScaleSchedule":
        """The schedule of a sampling that visits ``patch_nums``, or all scales if that is None.

        Raises:
            UserError: as :meth:`prune`, or the first scale is left out.
        """
        if patch_nums is None:
            return self
        schedule, first = self.prune(patch_nums), self.patch_nums[0]
        if schedule.patch_nums[0] != first:
            raise UserError(
                f"patch_nums must begin at scale {first}, the start token's", field="patch_nums"
            )
        return schedule


def settle_parent(patch_nums: tuple[int, ...], parent: tuple[int, ...]) -> tuple[int, ...]:
    """How a model's configuration writes its parent schedule: () where nothing was pruned.

    Raises:
        UserError: the two make no :class:`ScaleSchedule`.
    """
    schedule = ScaleSchedule(patch_nums, parent)
    return () if schedule.parent == patch_nums else parent


def check_patch_nums(patch_nums: Sequence[int]) -> None:
    """Refuse a schedule that is empty, not positive or not strictly increasing."""
    sides = list(patch_nums)
    increasing = all(a < b for a, b in pairwise(sides))
    if not sides or sides[0] < 1 or not increasing:
        raise UserError(
            f"patch_nums must be positive and strictly increasing, got {sides}", field="patch_nums"
        )


def _check_known(patch_nums: Sequence[int], known: tuple[int, ...]) -> None:
    strangers = [side for side in patch_nums if side not in known]
    if strangers:
        raise UserError(
            f"patch_nums {list(patch_nums)}: {strangers} are no scales of the model, which knows "
            f"{list(known)}",
            field="patch_nums",
        )

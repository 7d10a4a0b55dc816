"""Which codes a scale attends to. The masks are rules, never stored with the weights.

Block s of the input is the map built from scales < s, so attending within block s *is* attending
to the previous scale: the Markovian mask of the paper is the block-diagonal one.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from srdd.var.scales import ScaleSchedule

Mask = Literal["block_causal", "markov", "previous", "markov_local"]
MASKS: tuple[Mask, ...] = get_args(Mask)
PAPER_MASKS: tuple[Mask, Mask] = ("markov", "block_causal")  # SDD's and VAR's
DEFAULT_MASK = PAPER_MASKS[0]
LOCAL_SCALES, LOCAL_WINDOW = 2, 7  # of markov_local: its finest scales, the window's side


@dataclass(frozen=True, slots=True)
class AttentionSpan:
    """What one scale attends to: all codes from ``first`` to its own last, or a window of them."""

    first: int  # the first code seen
    begin: int  # the scale's own codes
    end: int
    local_side: int = 0  # the grid's side where each code sees a window of its own scale only


def first_scale_seen(mask: Mask, scale: int) -> int:
    """The coarsest scale that ``scale`` attends to; it sees all from there to itself.

    ``block_causal`` is VAR, ``markov`` SDD, ``markov_local`` MVAR. ``previous`` opens one block
    more and is an ablation: after d layers it reaches d scales back, so it is not Markov beyond
    one layer.
    """
    if mask == "block_causal":
        return 0
    return max(0, scale - 1) if mask == "previous" else scale


def attention_spans(mask: Mask, schedule: ScaleSchedule) -> tuple[AttentionSpan, ...]:
    """What each scale visited attends to, in codes of the schedule."""
    spans, last = schedule.spans, len(schedule.parent) - LOCAL_SCALES
    return tuple(
        AttentionSpan(
            first=spans[first_scale_seen(mask, scale)][0],
            begin=begin,
            end=end,
            local_side=side if mask == "markov_local" and parent >= last else 0,
        )
        for scale, ((begin, end), side, parent) in enumerate(
            zip(spans, schedule.patch_nums, schedule.parent_index, strict=True)
        )
    )

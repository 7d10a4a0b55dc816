"""What a refinement pass is shown of the codes that its own scale has so far.

A feedback is a function in :data:`FEEDBACK`; :data:`srdd.var.config.Feedback` has its name.
"""

from collections.abc import Callable

from torch import Tensor

from srdd.var.config import Feedback
from srdd.var.quantize import MultiScaleQuantizer

Show = Callable[[MultiScaleQuantizer, Tensor, Tensor, int], Tensor]


def updated(
    quantizer: MultiScaleQuantizer, codes_Bl: Tensor, redraw_Bl: Tensor, side: int
) -> Tensor:
    """All codes, those to be drawn again included."""
    return quantizer.grid(codes_Bl, side)


def kept(quantizer: MultiScaleQuantizer, codes_Bl: Tensor, redraw_Bl: Tensor, side: int) -> Tensor:
    """The codes that are not drawn again; zeros in the places of the others."""
    return quantizer.grid(codes_Bl, side) * ~redraw_Bl.view(-1, 1, side, side)


# From the codes, which of them are drawn again, and the side, to a map [B, C, side, side] that is
# added to the network's input. None: a pass draws from the first evaluation and runs no other.
FEEDBACK: dict[Feedback, Show | None] = {"updated": updated, "kept": kept, "none": None}

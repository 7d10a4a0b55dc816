"""Room for workers on a cluster: how many fit into what is free, and waiting for the rest.

Ray waits without end for what a cluster does not have, and counts what others hold as if it were
free. So room is found before a training starts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from srdd.errors import UserError
from srdd_platform.core.ray_session import Session

GRACE_S = 5.0  # Ray gives back what a finished training held a moment later
GROWING_S = 600.0  # default wait where an autoscaler may start nodes
POLL_S = 0.5

Resources = Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Workers of one training: as many as there is room for in a range."""

    what: str  # whose, for a person
    each: Resources  # of one worker, which lies on one node
    low: int
    high: int

    def __str__(self) -> str:
        count = str(self.low) if self.low == self.high else f"{self.low} to {self.high}"
        return f"{count} worker{'s' * (self.high != 1)} of {amounts(self.each)}"


def fit(nodes: Sequence[Resources], each: Resources) -> int:
    """How many workers fit into what nodes have."""
    return sum(_on_node(node, each) for node in nodes)


def _on_node(node: Resources, each: Resources) -> int:
    asked = {name: value for name, value in each.items() if value}
    return min(int((node.get(name, 0.0) + 1e-6) // value) for name, value in asked.items())


def side_by_side(nodes: Sequence[Resources], needs: Sequence[Need]) -> list[int] | None:
    """How many workers each training gets of what nodes have; None where not all get the fewest.

    The fewest of all come first; the earlier trainings then get what is left.
    """
    left = [dict(node) for node in nodes]
    counts = []
    for need in needs:
        counts.append(_take(left, need.each, need.low))
        if counts[-1] < need.low:
            return None
    for i, need in enumerate(needs):
        counts[i] += _take(left, need.each, need.high - need.low)
    return counts


def _take(nodes: list[dict[str, float]], each: Resources, most: int) -> int:
    """Put up to ``most`` workers on nodes, which lose what these hold; returns how many."""
    taken = 0
    for node in nodes:
        here = min(_on_node(node, each), most - taken)
        for name, value in each.items():
            node[name] = node.get(name, 0.0) - here * value
        taken += here
    return taken


def most_workers(need: Need, *, free: int, total: int, addable: int) -> int:
    """The upper end of an elastic range for Ray, which takes all of a cluster for free.

    Args:
        need: the training's workers.
        free: workers that fit into what is free.
        total: those that would fit into what is up, were nobody else there.
        addable: those that would fit on nodes that an autoscaler may yet start.
    """
    return need.high if free >= total else max(need.low, min(need.high, free + addable))


def amounts(resources: Resources) -> str:
    """``2 CPUs and 1 GPU``."""
    names = {"CPU": 0.0, **{name: resources[name] for name in ("CPU", "GPU") if name in resources}}
    return " and ".join(f"{value:g} {name}{'s' * (value != 1)}" for name, value in names.items())


def fit_together(session: Session, needs: Sequence[Need]) -> bool:
    """Whether all trainings get the fewest of their workers of what is free, within seconds."""
    last = time.monotonic() + GRACE_S
    while side_by_side(session.free_nodes, needs) is None:
        if time.monotonic() > last or side_by_side(session.nodes, needs) is None:
            return False
        time.sleep(POLL_S)
    return True


def patience(session: Session, wait_s: float | None) -> float:
    """Seconds to wait for room: those given, else 600 where an autoscaler may start nodes."""
    if wait_s is not None:
        return wait_s
    return GROWING_S if session.grows else 0.0


def find_room(
    session: Session, needs: Sequence[Need], wait_s: float, say: Callable[[str], None]
) -> list[tuple[int, int]]:
    """Each training's range of workers for Ray, all side by side, waiting where that may help.

    Args:
        session: the cluster.
        needs: what the trainings ask for.
        wait_s: seconds to wait; with 0 only for what a finished training is about to give back.
        say: told once what is waited for.

    Raises:
        UserError: there is no such room; the message names what is free.
    """
    for need in needs:
        _refuse_impossible(session, need, wait_s)
    counts = _wait_for_room(session, needs, wait_s, say)
    if session.local or len(needs) > 1:
        return [(count, count) for count in counts]
    return [_range(session, needs[0], counts[0])]


def _wait_for_room(
    session: Session, needs: Sequence[Need], wait_s: float, say: Callable[[str], None]
) -> list[int]:
    """How many workers each training gets, once all get the fewest."""
    probe: PlacementGroup | None = None
    started = time.monotonic()
    try:
        while True:
            counts = side_by_side(session.free_nodes, needs)
            if counts is not None:
                return counts
            if probe is not None and probe.wait(POLL_S):  # it holds what it was waiting for
                more = [replace(need, low=0, high=need.high - need.low) for need in needs]
                extra = side_by_side(session.free_nodes, more) or [0] * len(needs)
                return [need.low + n for need, n in zip(needs, extra, strict=True)]
            if time.monotonic() - started >= max(wait_s, GRACE_S):
                raise UserError(_no_room(session, needs, wait_s))
            if probe is None and wait_s:  # a group that waits is what an autoscaler acts on
                asked = "; ".join(map(str, needs))
                say(f"waiting up to {wait_s:g} s for {asked}; free: {amounts(session.free)}")
                probe = placement_group([dict(n.each) for n in needs for _ in range(n.low)])
            if probe is None:
                time.sleep(POLL_S)
    finally:
        if probe is not None:
            remove_placement_group(probe)


def _range(session: Session, need: Need, count: int) -> tuple[int, int]:
    if need.low == need.high:
        return count, count
    capacity, up = session.capacity, session.total
    more = {name: capacity.get(name, 0.0) - up.get(name, 0.0) for name in need.each}
    total = min(fit(session.nodes, need.each), need.high)
    return need.low, most_workers(need, free=count, total=total, addable=fit([more], need.each))


def _refuse_impossible(session: Session, need: Need, wait_s: float) -> None:
    """Refuse at once what the cluster never has; one that says no limits may yet grow."""
    if not session.local and not session.grows and wait_s:
        return
    asked = {name: need.low * value for name, value in need.each.items()}
    session.require(cpus=asked.get("CPU", 0.0), gpus=asked.get("GPU", 0.0))


def _no_room(session: Session, needs: Sequence[Need], wait_s: float) -> str:
    asked = "; ".join(f"{need.what} needs {need}" for need in needs)
    waited = f" after {wait_s:g} s" if wait_s else ""
    return (
        f"{asked}, but free on the Ray cluster{waited} is {amounts(session.free)} of "
        f"{amounts(session.total)}: ask for less, or wait for others to end"
    )

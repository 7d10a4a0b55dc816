"""Room for workers: the arithmetic, without Ray. What Ray does with it is in test_training_ray."""

from types import SimpleNamespace

import pytest

from srdd.errors import UserError
from srdd_platform.core.ray_session import Session
from srdd_platform.train import placement
from srdd_platform.train.placement import (
    Need,
    find_room,
    fit,
    fit_together,
    most_workers,
    side_by_side,
)
from srdd_platform.train.worker_timeout import NoWorkersError, Patience

CPU, GPU = {"CPU": 2.0}, {"CPU": 1.0, "GPU": 1.0}


def need(each: dict[str, float], low: int, high: int) -> Need:
    return Need(what="tokenizer", each=each, low=low, high=high)


def test_a_worker_lies_on_one_node() -> None:
    assert fit([{"CPU": 3.0}, {"CPU": 3.0}], CPU) == 2  # not 3: no worker spans nodes
    assert fit([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], GPU) == 2
    assert fit([{"CPU": 0.3 * 3}], {"CPU": 0.3}) == 3  # floats
    assert fit([], CPU) == fit([{}], CPU) == 0


def test_trainings_side_by_side_first_get_the_fewest_then_what_is_left() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 4.0}]
    assert side_by_side(nodes, [need(CPU, 1, 9), need(CPU, 1, 2)]) == [3, 1]
    assert side_by_side(nodes, [need(CPU, 3, 3), need(CPU, 2, 2)]) is None
    assert nodes == [{"CPU": 4.0}, {"CPU": 4.0}]


@pytest.mark.parametrize(
    ("free", "total", "addable", "most"),
    [(4, 4, 0, 8), (4, 6, 0, 4), (4, 6, 3, 7), (0, 6, 0, 2), (4, 6, 90, 8)],
)
def test_an_elastic_training_never_counts_on_what_others_hold(
    free: int, total: int, addable: int, most: int
) -> None:
    found = most_workers(need(CPU, 2, 8), free=free, total=total, addable=addable)
    assert found == most


class Fake(Session):
    """A cluster whose nodes are given."""

    def __init__(self, up: list[dict[str, float]], free: list[dict[str, float]], *, local: bool):
        super().__init__(dashboard_url="", local=local)
        object.__setattr__(self, "up", up)
        object.__setattr__(self, "unheld", free)

    nodes = property(lambda self: self.up)  # type: ignore[assignment]
    free_nodes = property(lambda self: self.unheld)  # type: ignore[assignment]
    total = property(lambda self: {"CPU": sum(n["CPU"] for n in self.up)})  # type: ignore[assignment]
    free = property(lambda self: {"CPU": sum(n["CPU"] for n in self.unheld)})  # type: ignore[assignment]
    capacity = total
    grows = False  # type: ignore[assignment]


def test_a_local_cluster_gives_what_is_free_or_says_what_that_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement, "GRACE_S", 0.0)
    cluster = Fake([{"CPU": 8.0}], [{"CPU": 5.0}], local=True)
    assert find_room(cluster, [need(CPU, 1, 4)], 0.0, pytest.fail) == [(2, 2)]
    with pytest.raises(
        UserError,
        match=r"^tokenizer needs 3 workers of 2 CPUs, but free on the Ray cluster is 5 CPUs of "
        r"8 CPUs: ask for less",
    ):
        find_room(cluster, [need(CPU, 3, 3)], 0.0, pytest.fail)
    with pytest.raises(UserError, match=r"10 CPUs and 0 GPUs needed, but .* has 8 CPUs"):
        find_room(cluster, [need(CPU, 5, 5)], 0.0, pytest.fail)
    assert fit_together(cluster, [need(CPU, 1, 1), need(CPU, 1, 4)])
    assert not fit_together(cluster, [need(CPU, 2, 2), need(CPU, 1, 4)])


def test_on_a_cluster_that_is_joined_a_range_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "GRACE_S", 0.0)
    alone = Fake([{"CPU": 4.0}], [{"CPU": 4.0}], local=False)
    assert find_room(alone, [need(CPU, 1, 9)], 0.0, pytest.fail) == [(1, 9)]
    shared = Fake([{"CPU": 4.0}, {"CPU": 4.0}], [{"CPU": 4.0}, {"CPU": 1.0}], local=False)
    assert find_room(shared, [need(CPU, 1, 9)], 0.0, pytest.fail) == [(1, 2)]
    assert find_room(shared, [need(CPU, 2, 2)], 0.0, pytest.fail) == [(2, 2)]


def state(name: str) -> SimpleNamespace:
    return SimpleNamespace(_state_type=SimpleNamespace(state_name=name))


def test_a_training_without_workers_is_ended_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("srdd_platform.train.worker_timeout.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("srdd_platform.train.worker_timeout.time.sleep", lambda seconds: None)
    patience = Patience(60.0, "2 workers of 1 CPU")

    def pass_time(seconds: float, name: str) -> None:
        clock[0] += seconds
        patience.after_controller_state_update(state("RUNNING"), state(name))

    pass_time(1, "SCHEDULING")
    pass_time(59, "RESCHEDULING")
    pass_time(1000, "RUNNING")  # workers, at last
    pass_time(1, "RESTARTING")
    pass_time(59, "RESTARTING")
    with pytest.raises(NoWorkersError, match="no room for 2 workers of 1 CPU in 60 s"):
        pass_time(2, "RESTARTING")

"""The step loop alone: asyncio and torch, no Ray."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srdd import Pipeline, SamplerConfig, image_seed, load_pipeline, sample
from srdd.errors import UserError
from srdd.images import to_uint8
from srdd.var.masks import Mask
from srdd.var.state import SampleState
from srdd_platform.core.images import to_png
from srdd_platform.serving.engine import Engine, Generated, Load
from srdd_platform.serving.errors import (
    MAX_RETRY_S,
    QueueFullError,
    SamplingError,
    StoppedError,
)

GUIDED = SamplerConfig(cfg=1.5, refine_steps=2, resample_threshold=0.1)
WAIT_S = 60  # a bound for what should take milliseconds
SCALES = 4


class Turns:
    """Notes step and size of each turn of the engine, and can hold one."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.hold: Callable[[SampleState], bool] = lambda state: False
        self.held = threading.Event()
        self.go = threading.Event()

    def note(self, state: SampleState) -> None:
        self.seen.append((state.step, len(state)))
        if not self.held.is_set() and self.hold(state):
            self.held.set()
            assert self.go.wait(WAIT_S)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.held.wait, WAIT_S)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    turns, advance = Turns(), Pipeline.advance

    def noted(pipeline: Pipeline, state: SampleState) -> SampleState:
        turns.note(state)
        return advance(pipeline, state)

    monkeypatch.setattr(Pipeline, "advance", noted)
    return turns


@pytest.fixture
def pipeline(tiny_pipeline: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline)


def ask(engine: Engine, label: int, n: int, seed: int, **more: Any) -> asyncio.Task[Generated]:
    seeds = [image_seed(seed, i) for i in range(n)]
    return asyncio.ensure_future(engine.generate([label] * n, seeds, **more))


def expected(
    pipeline: Pipeline, label: int, n: int, seed: int, config: SamplerConfig | None = None
) -> torch.Tensor:
    labels = torch.full((n,), label)
    seeds = [image_seed(seed, i) for i in range(n)]
    return to_uint8(sample(pipeline, labels, config, seeds).images)


@pytest.mark.parametrize("mask", ["markov", "block_causal"])
@pytest.mark.parametrize("pad", [False, True])
def test_company_does_not_change_an_image(
    mask: Mask, pad: bool, tiny_pipelines: dict[Mask, Path]
) -> None:
    pipeline = replace(load_pipeline(tiny_pipelines[mask]), sampler=GUIDED)
    requests = [  # class, n, seed
        (3, 4, 7),
        (0, 1, 1),
        (9, 5, 7),
        (3, 2, 8),
        (5, 1, 0),
        (1, 3, 2),
        (2, 6, 3),
        (3, 4, 9),
    ]

    async def drawn(together: bool) -> list[Generated]:
        engine = Engine(pipeline, max_batch=32, pad=pad)
        if together:
            results = await asyncio.gather(*(ask(engine, *request) for request in requests))
        else:
            results = [await ask(engine, *request) for request in requests]
        await engine.close()
        return results

    alone, shared = asyncio.run(drawn(False)), asyncio.run(drawn(True))
    assert [result.batch_images for result in alone] == [n for _, n, _ in requests]
    assert {result.batch_images for result in shared} == {sum(n for _, n, _ in requests)}
    for request, one, other in zip(requests, alone, shared, strict=True):
        files = [to_png(image) for image in one.images]
        assert len(set(files)) == request[1]
        assert files == [to_png(image) for image in other.images]
        assert torch.equal(one.images, expected(pipeline, *request))


def test_a_newcomer_catches_up_and_then_shares(pipeline: Pipeline, turns: Turns) -> None:
    async def main() -> list[Generated]:
        engine = Engine(pipeline)
        turns.hold = lambda state: state.step == 1
        first = ask(engine, 1, 2, 0)
        await turns.wait()
        second = ask(engine, 2, 3, 0)
        await asyncio.sleep(0)  # its task runs up to the queue
        turns.go.set()
        return await asyncio.gather(first, second)

    first, second = asyncio.run(main())
    assert turns.seen == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 5), (3, 5)]
    assert (first.batch_images, second.batch_images) == (5, 5)
    assert torch.equal(first.images, expected(pipeline, 1, 2, 0))
    assert torch.equal(second.images, expected(pipeline, 2, 3, 0))


def test_a_large_request_is_cut(pipeline: Pipeline, turns: Turns) -> None:
    async def main() -> Generated:
        return await ask(Engine(pipeline, max_batch=3), 4, 7, 5)

    drawn = asyncio.run(main())
    assert turns.seen == [(s, n) for n in (3, 3, 1) for s in range(SCALES)]
    assert drawn.batch_images == 3
    assert torch.equal(drawn.images, expected(pipeline, 4, 7, 5))


def test_who_came_first_is_not_overtaken(pipeline: Pipeline, turns: Turns) -> None:
    ended: list[int] = []

    async def main() -> None:
        engine = Engine(pipeline, max_batch=2)
        turns.hold = lambda state: state.step == 2
        tasks = [ask(engine, 0, 1, 0)]
        await turns.wait()
        tasks += [ask(engine, label, 1, 0) for label in range(1, 6)]
        for label, task in enumerate(tasks):
            task.add_done_callback(lambda _, label=label: ended.append(label))
        await asyncio.sleep(0)
        turns.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert ended == list(range(6))
    assert turns.seen[3:7] == [(0, 1), (1, 1), (2, 1), (3, 2)]


def test_settings_are_not_mixed_in_a_batch(pipeline: Pipeline, turns: Turns) -> None:
    pruned = SamplerConfig(patch_nums=(1, 2, 4))

    async def main() -> list[Generated]:
        engine = Engine(pipeline)
        both = (ask(engine, 1, 2, 0), ask(engine, 1, 3, 0, settings=pruned))
        return await asyncio.gather(*both)

    plain, fewer = asyncio.run(main())
    assert (plain.batch_images, fewer.batch_images) == (2, 3)
    assert sorted(turns.seen) == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 2), (2, 3), (3, 2)]
    assert torch.equal(plain.images, expected(pipeline, 1, 2, 0))
    assert torch.equal(fewer.images, expected(pipeline, 1, 3, 0, pruned))


def test_a_cancelled_request_leaves_at_the_next_scale(pipeline: Pipeline, turns: Turns) -> None:
    async def main() -> Generated:
        engine = Engine(pipeline, max_batch=2, max_images=4)
        turns.hold = lambda state: state.step == 1
        gone = ask(engine, 1, 4, 0)  # two pieces, of which one waits
        await turns.wait()
        assert engine.load == Load(active=2, waiting=2)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert engine.load == Load(active=0, waiting=0)
        after = ask(engine, 2, 1, 0)
        await asyncio.sleep(0)
        turns.go.set()
        return await after

    drawn = asyncio.run(main())
    assert turns.seen == [(0, 2), (1, 2), *((s, 1) for s in range(SCALES))]
    assert torch.equal(drawn.images, expected(pipeline, 2, 1, 0))


def test_a_failure_is_its_batch_s_alone(pipeline: Pipeline) -> None:
    pipeline.transformer.class_emb.weight[3] = float("nan")

    async def main() -> tuple[BaseException | Generated, Generated]:
        engine = Engine(pipeline)
        (failed,) = await asyncio.gather(ask(engine, 3, 2, 0), return_exceptions=True)
        engine.check()
        return failed, await ask(engine, 2, 1, 0)

    failed, drawn = asyncio.run(main())
    assert isinstance(failed, SamplingError)
    assert str(failed) == "FloatingPointError: non-finite logits at scale 1x1"
    assert torch.equal(drawn.images, expected(pipeline, 2, 1, 0))


def test_settings_that_do_not_fit_fail_their_own_request_alone(pipeline: Pipeline) -> None:
    async def main() -> list[Any]:
        engine = Engine(pipeline)
        both = (ask(engine, 1, 2, 0, settings=SamplerConfig(top_k=33)), ask(engine, 1, 3, 0))
        return await asyncio.gather(*both, return_exceptions=True)

    refused, drawn = asyncio.run(main())
    assert isinstance(refused, UserError)
    assert drawn.batch_images == 3
    assert torch.equal(drawn.images, expected(pipeline, 1, 3, 0))


def test_a_full_engine_refuses(pipeline: Pipeline, turns: Turns) -> None:
    async def main() -> None:
        engine = Engine(pipeline, max_batch=2, max_images=4)
        turns.hold = lambda state: True
        large = ask(engine, 0, 6, 0)  # an empty engine takes any
        await turns.wait()
        with pytest.raises(QueueFullError, match="try again in") as refused:
            await ask(engine, 0, 1, 0)
        assert 1 <= refused.value.retry_after <= MAX_RETRY_S
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        full = [ask(engine, 0, n, 0) for n in (2, 2, 1)]
        await asyncio.sleep(0)
        turns.go.set()
        *good, late = await asyncio.gather(*full, return_exceptions=True)
        assert [type(each) for each in good] == [Generated, Generated]
        assert isinstance(late, QueueFullError)

    asyncio.run(main())


def test_a_loop_that_ends_leaves_nobody_waiting(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KeyError("a bug")

    async def main() -> None:
        engine = Engine(pipeline, max_batch=1)
        engine.check()
        monkeypatch.setattr(engine, "_next_batch", broken)
        both = [ask(engine, 0, 1, 0), ask(engine, 0, 1, 1)]
        for error in await asyncio.gather(*both, return_exceptions=True):
            assert isinstance(error, StoppedError)
        with pytest.raises(StoppedError) as stopped:
            engine.check()
        assert isinstance(stopped.value.__cause__, KeyError)
        with pytest.raises(StoppedError):
            await ask(engine, 0, 1, 0)

    asyncio.run(main())


def test_closing_tells_those_inside(pipeline: Pipeline, turns: Turns) -> None:
    async def main() -> None:
        engine = Engine(pipeline)
        turns.hold = lambda state: True
        inside = ask(engine, 0, 1, 0)
        await turns.wait()
        await engine.close()
        turns.go.set()
        with pytest.raises(StoppedError):
            await inside

    asyncio.run(main())


def test_warming_up_draws_one_and_a_whole_batch(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, max_batch=2)
    assert not engine.warm
    engine.warm_up()
    assert engine.warm
    pipeline.transformer.class_emb.weight[0] = float("nan")
    broken = Engine(pipeline, max_batch=2)
    with pytest.raises(FloatingPointError, match="1x1"):
        broken.warm_up()
    assert not broken.warm


@pytest.mark.parametrize(
    ("labels", "seeds", "config", "message"),
    [
        ([11], [0], None, r"classes must lie in \[0, 10\)"),
        ([-1], [0], None, "classes must lie in"),
        ([1, 2], [0], None, "2 labels, 1 seeds"),
        ([], [], None, "0 labels"),
        ([1], [0], SamplerConfig(patch_nums=(1, 5)), "5"),
        ([1], [0], SamplerConfig(top_k=33), "top_k 33"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    pipeline: Pipeline, labels: list[int], seeds: list[int], config: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        asyncio.run(Engine(pipeline).generate(labels, seeds, config))

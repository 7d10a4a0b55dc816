"""Two workers without Ray: run as a script, this file is one of them."""

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_leaves

from srdd.errors import UserError
from srdd.presets import digits
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.train.loop import Log, checkpoint_hook, fit
from srdd.train.task import Batch
from srdd.train.var.transformer import arrange
from srdd.train.var.transformer_task import TransformerTask
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.tokenizer import Tokenizer
from srdd_platform.train.job import make_job
from srdd_platform.train.options import Options
from srdd_platform.train.parallel import Workers, make_workers

STEPS, HALF_WAY, SIZE = 6, 3, 9  # shares of 5 and 4 samples, each in 4 parts
POISONED = 1  # at this step the last worker's loss is not finite, so all leave it out
TRANSFORMER = TransformerConfig(
    patch_nums=(1, 2, 3), num_classes=5, depth=3, width=30, num_heads=3, vocab_size=64,
    z_channels=4, drop_path=0.3,
)  # fmt: skip
RECIPE = OptimConfig(
    steps=STEPS, batch_size=SIZE, lr=3e-3, clip=0.5, ema=0.8, accumulate=4, recompute=True,
    nonfinite_steps=2,
)  # fmt: skip
CPU = torch.device("cpu")
Run = dict[str, Any]


def _task(optim: OptimConfig, model: TransformerConfig) -> TransformerTask:
    torch.manual_seed(0)
    tokenizer = Tokenizer(
        TokenizerConfig(
            resolution=12, patch_nums=(1, 2, 3), vocab_size=64, z_channels=4, ch=8,
            ch_mult=(1, 1, 1), num_res_blocks=1,
        )
    )  # fmt: skip
    open_gates: dict[str, Any] = {"init_gate": 1.0, "init_head": 1.0}
    teacher = TransformerTask(
        model, TransformerLossConfig(), replace(optim, seed=1), tokenizer, **open_gates
    ).model
    loss = TransformerLossConfig(label_drop=0.2, teacher_kl=0.1)
    return TransformerTask(model, loss, optim, tokenizer, teacher=teacher, **open_gates)


def _batches(workers: Workers) -> Callable[[int], Iterator[Batch]]:
    codes = torch.randint(64, (24, 14), generator=torch.Generator().manual_seed(3))

    def stream(step: int) -> Iterator[Batch]:
        while True:
            index_b = (torch.arange(step * SIZE, (step + 1) * SIZE) % 24)[workers.rank :]
            index_b = index_b[:: workers.world]
            yield Batch(codes[index_b], index_b % 5, index_b, SIZE)
            step += 1

    return stream


class _Poisoned(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.no_sync = getattr(module, "no_sync", nullcontext)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self.module(batch, step)
        return loss * (math.nan if step == POISONED else 1.0), metrics


def _run(
    workers: Workers, optim: OptimConfig = RECIPE, *, model: TransformerConfig = TRANSFORMER,
    resume: dict[str, Any] | None = None, compiled: bool = False,
) -> Run:  # fmt: skip
    """Train; the curve, the states, and how much of the weights this worker keeps."""
    task = _task(optim, model)
    if compiled:
        arrange(task.model, replace(optim, compile=True), backend="eager")
    workers.place(task, CPU)
    curve: dict[int, dict[str, float]] = {}
    states: dict[int, Any] = {}

    distributed = workers.wrap

    def wrap(module: nn.Module) -> nn.Module:
        wrapped = distributed(module)
        return _Poisoned(wrapped) if workers.rank == workers.world - 1 else wrapped

    def validate() -> dict[str, float]:
        whole = workers.assembled(task)
        if workers.rank != 0:
            return {}
        assert isinstance(whole, TransformerTask)
        batch = next(_batches(Workers(0, 1))(0))
        with torch.no_grad():
            logits = whole.model(batch.labels_b, batch.inputs)
        return {"nll": float(nn.functional.cross_entropy(logits.mT, batch.inputs))}

    workers = copy.copy(workers)
    workers.wrap = wrap  # type: ignore[method-assign]
    ema = fit(
        task, optim, _batches(workers), resume=resume, reduce=workers,
        log=Log(write=curve.__setitem__, every=1, validate=validate, validate_every=2),
        hooks=[checkpoint_hook(
            HALF_WAY, lambda step, state: states.update({step: copy.deepcopy(state)})
        )],
    )  # fmt: skip
    own = [p for p in task.module.parameters() if p.requires_grad]
    return {
        "curve": curve,
        "states": states,
        "weights": sum(_local(p).numel() for p in own),
        "averages": sum(_local(p).numel() for p in ema.shadow.values()),
    }


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _worker(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    ddp = make_workers("ddp", rank, 2, CPU, half=False)
    fsdp = make_workers("fsdp", rank, 2, CPU, half=False)
    half = make_workers("fsdp", rank, 2, CPU, half=True)
    lower = replace(RECIPE, precision="bfloat16")
    shared = replace(TRANSFORMER, shared_aln=True)
    found = {
        "ddp": _run(ddp),
        "fsdp": _run(fsdp),
        "ddp, half": _run(ddp, lower, model=shared),
        "fsdp, half": _run(half, lower, model=shared),
        "fsdp, compiled": _run(fsdp, compiled=True),
    }
    if rank == 0:
        torch.save(found["fsdp"]["states"][HALF_WAY], directory / "fsdp.pt")
    dist.barrier()
    found["fsdp, then ddp"] = _run(ddp, resume=torch.load(directory / "fsdp.pt"))
    found["fsdp, then fsdp"] = _run(fsdp, resume=torch.load(directory / "fsdp.pt", mmap=True))
    found["alone, then fsdp"] = _run(fsdp, resume=torch.load(directory / "alone.pt", mmap=True))
    torch.save(found, directory / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> Run:
    return _run(Workers(0, 1))


@pytest.fixture(scope="module")
def runs(alone: Run, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Run]]:
    """What two workers find, each of them."""
    directory = tmp_path_factory.mktemp("parallel")
    torch.save(alone["states"][HALF_WAY], directory / "alone.pt")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(directory)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [worker.communicate(timeout=500)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()  # one that still runs waits for the other
    for worker, text in zip(workers, said, strict=True):
        assert worker.returncode == 0, text
    return [torch.load(directory / f"{rank}.pt") for rank in (0, 1)]


def _assert_near(found: Run, expected: Run, tolerance: float, steps: Sequence[int]) -> None:
    """Curves within a relative tolerance, states within the same absolute one."""
    for step in steps:
        if step != POISONED + 1:
            assert found["curve"][step] == pytest.approx(expected["curve"][step], rel=tolerance)
    state, wanted = (tree_flatten(run["states"][steps[-1]]) for run in (found, expected))
    assert state[1] == wanted[1]
    for a, b in zip(state[0], wanted[0], strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, atol=tolerance, rtol=0)
        else:
            assert a == b


def test_shards_train_the_same_model_as_copies(runs: list[dict[str, Run]], alone: Run) -> None:
    """Loss, gradient's norm, held-out loss of the averages; weights, averages and moments."""
    found, steps = runs[0], range(1, STEPS + 1)
    assert sorted(found["fsdp"]["curve"]) == [s for s in steps if s != POISONED + 1]
    assert {"val_nll", "teacher_kl"} <= found["fsdp"]["curve"][4].keys()
    _assert_near(found["fsdp"], found["ddp"], 1e-5, steps)
    _assert_near(found["fsdp"], alone, 1e-5, steps)
    _assert_near(found["fsdp, compiled"], found["ddp"], 1e-5, steps)
    norms = [found["ddp"]["curve"][step]["grad_norm"] for step in (1, 3)]
    assert min(norms) > RECIPE.clip  # so the gradient was clipped


def test_each_worker_keeps_its_shard_alone(runs: list[dict[str, Run]], alone: Run) -> None:
    for what in ("weights", "averages"):
        parts = [run["fsdp"][what] for run in runs]
        assert sum(parts) == alone[what]
        assert max(parts) < 0.6 * alone[what]
        assert [run["ddp"][what] for run in runs] == [alone[what]] * 2


def test_a_checkpoint_of_shards_is_whole_and_the_first_workers_alone(
    runs: list[dict[str, Run]],
) -> None:
    first, second = (run["fsdp"]["states"][STEPS] for run in runs)
    whole = runs[0]["ddp"]["states"][STEPS]
    for a, b in zip(tree_leaves(first), tree_leaves(whole), strict=True):
        assert type(a) is type(b)
        assert not isinstance(a, Tensor) or (a.shape, a.device) == (b.shape, CPU)
    frozen = sum(x.numel() for name, x in whole["module"].items() if "quantizer" in name)
    assert sum(tensor.numel() for tensor in second["module"].values()) == frozen
    assert sum(tensor.numel() for tensor in second["ema"].values()) == 0


def test_a_run_of_shards_resumes_exactly_and_with_other_workers(
    runs: list[dict[str, Run]], alone: Run
) -> None:
    found, rest = runs[0], range(HALF_WAY + 1, STEPS + 1)
    _assert_near(found["fsdp, then fsdp"], found["fsdp"], 0.0, rest)
    assert found["fsdp, then fsdp"]["curve"].keys() == set(rest)
    _assert_near(found["fsdp, then ddp"], found["fsdp"], 1e-5, rest)
    _assert_near(found["alone, then fsdp"], alone, 1e-5, rest)
    again = _run(Workers(0, 1), resume=found["fsdp"]["states"][HALF_WAY])
    _assert_near(again, alone, 1e-5, rest)


def test_in_bfloat16_shards_are_near_and_weights_stay_in_float32(
    runs: list[dict[str, Run]],
) -> None:
    copies, shards = runs[0]["ddp, half"], runs[0]["fsdp, half"]
    for step, metrics in copies["curve"].items():
        assert shards["curve"][step] == pytest.approx(metrics, rel=2e-3)
    assert shards["curve"][STEPS] != copies["curve"][STEPS]  # queries' lengths are rounded too
    for part in ("module", "ema"):
        dtypes = {tensor.dtype for tensor in shards["states"][STEPS][part].values()}
        assert dtypes == {torch.float32}


def test_one_worker_has_nothing_to_shard() -> None:
    assert type(make_workers("fsdp", 0, 1, CPU, half=False)) is Workers


@pytest.mark.parametrize("kind", ["tokenizer", "classifier"])
def test_only_transformers_are_sharded(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"train a {kind} with ddp"):
        make_job(kind, digits(), tmp_path, tmp_path / "out", Options(parallel="fsdp"))


if __name__ == "__main__":
    _worker(int(sys.argv[1]), Path(sys.argv[2]))

"""The transformer's recipe: schedules, averages, micro-batches, precision, weights of scales."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.train.ema import Ema, finished_weights
from srdd.train.loop import Hook, Log, checkpoint_hook, fit, split_batch
from srdd.train.optim import build_optimizer, lr_at, set_rates, weight_decay_at
from srdd.train.task import Batch, Trainable
from srdd.train.var.transformer import arrange, scale_masses
from srdd.train.var.transformer_task import TransformerTask
from srdd.train.workers import Alone
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.scales import ScaleSchedule
from srdd.var.tokenizer import Tokenizer

Same = Callable[[Any, Any], None]
SIDES = (1, 2, 4)
PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
TRANSFORMER = TransformerConfig(
    patch_nums=SIDES, num_classes=3, depth=2, width=16, num_heads=2, vocab_size=64, z_channels=4,
    drop_path=0.5,
)  # fmt: skip
OPTIM = OptimConfig(steps=8, batch_size=8, lr=3e-3, seed=5)


def _tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(
        resolution=8, patch_nums=SIDES, vocab_size=64, z_channels=4, ch=8, ch_mult=(1, 2),
        num_res_blocks=1,
    )  # fmt: skip
    return Tokenizer(config)


def _task(
    optim: OptimConfig = OPTIM, model: TransformerConfig = TRANSFORMER, **loss: Any
) -> TransformerTask:
    config = TransformerLossConfig(**{"label_drop": 0.4, **loss})
    return TransformerTask(model, config, optim, _tokenizer(), init_gate=1.0, init_head=1.0)


def _batches(size: int = 8) -> Callable[[int], Iterator[Batch]]:
    codes = torch.randint(64, (24, 21), generator=torch.Generator().manual_seed(3))

    def stream(step: int) -> Iterator[Batch]:
        while True:
            index_b = torch.arange(step * size, (step + 1) * size) % len(codes)
            yield Batch(codes[index_b], index_b % 3, index_b, size)
            step += 1

    return stream


def _run(optim: OptimConfig, **settings: Any) -> dict[int, Any]:
    """Copies of the states after every second step of a fresh task."""
    states: dict[int, Any] = {}

    def keep(step: int, state: dict[str, Any]) -> None:
        states[step] = copy.deepcopy(state)

    loss = settings.pop("loss", {})
    batches = _batches(optim.batch_size)
    hooks = [checkpoint_hook(2, keep)]
    fit(_task(optim, **loss), optim, batches, hooks=hooks, **settings)
    return states


EVERYTHING: dict[str, Any] = {
    "ema": 0.7, "accumulate": 3, "precision": "bfloat16", "recompute": True,
    "final_weight_decay": 0.2, "lr_schedule": "linear", "hold": 0.05, "warmup_start": 0.005,
    "lr_batch": 4,
}  # fmt: skip
LOSS: dict[str, Any] = {"refine_share": 0.5, "scale_weights": "lognorm"}


@pytest.mark.parametrize("killed", [2, 6])
def test_all_of_it_resumes_exactly(assert_same: Same, killed: int) -> None:
    optim = replace(OPTIM, **EVERYTHING)
    whole = _run(optim, loss=LOSS)
    torch.rand(7)
    resumed = _run(optim, loss=LOSS, resume=whole[killed])
    assert sorted(resumed) == [step for step in whole if step > killed]
    for step, state in resumed.items():
        assert state["ema"]
        assert_same(state, whole[step])


def test_an_extended_run_is_the_longer_run_at_its_last_rates(assert_same: Same) -> None:
    optim = replace(OPTIM, **EVERYTHING)
    rates: dict[int, float] = {}

    def log(step: int, metrics: dict[str, float]) -> None:
        rates[step] = metrics["lr"]

    first = _run(optim, log=Log(write=log, every=1))
    longer = _run(optim, extend_to=12)
    assert_same(longer[8], first[8])
    resumed = _run(optim, extend_to=12, resume=first[8], log=Log(write=log, every=1))
    assert sorted(resumed) == [10, 12]
    assert_same(resumed[12], longer[12])
    assert [rates[step] for step in range(8, 13)] == [pytest.approx(0.006 * 0.05)] * 5
    decayed = resumed[12]["optimizer"]["param_groups"][0]
    assert decayed["weight_decay"] == pytest.approx(0.2)


def test_the_learning_rate_is_in_proportion_to_the_batch() -> None:
    """VAR: base * batch / 256."""
    assert OptimConfig(steps=1, lr=1e-4, batch_size=768).peak_lr == 1e-4
    scaled = OptimConfig(steps=1, lr=1e-4, lr_batch=256, batch_size=768, warmup=0.0)
    assert lr_at(scaled, 0) == pytest.approx(3e-4)
    assert build_optimizer(nn.Linear(2, 2), scaled).param_groups[0]["lr"] == pytest.approx(3e-4)


def test_vars_lin0() -> None:
    """VAR's ``lr_control.py`` with wp0 = .005, T = .05, wpe = .1; 20 of 1001 steps warm up."""
    config = OptimConfig(
        steps=1001, lr=1.0, lr_schedule="linear", warmup=20 / 1001, warmup_start=0.005,
        hold=0.05, final_lr=0.1,
    )  # fmt: skip
    assert lr_at(config, 0) == pytest.approx(0.005)
    assert lr_at(config, 10) == pytest.approx(0.005 + 0.995 * 0.5)
    assert lr_at(config, 20) == 1.0
    assert lr_at(config, 20 + 48) == 1.0  # 48 / 980 < 0.05
    assert lr_at(config, 20 + 490) == pytest.approx(0.1 + 0.9 * 0.5 / 0.95)
    assert lr_at(config, 1000) == pytest.approx(0.1)
    assert lr_at(config, 5000) == lr_at(config, 1000)  # beyond the schedule


def test_hold_shifts_the_cosine() -> None:
    config = OptimConfig(steps=11, lr=1.0, warmup=0.0, hold=0.2, final_lr=0.0)
    assert [lr_at(config, step) for step in (0, 1, 2)] == [1.0] * 3
    assert lr_at(config, 6) == pytest.approx(0.5)
    assert lr_at(config, 10) == pytest.approx(0.0)


def test_weight_decay_along_a_cosine() -> None:
    config = OptimConfig(steps=5, weight_decay=0.04, final_weight_decay=0.08)
    found = [weight_decay_at(config, step) for step in (0, 1, 2, 4, 9)]
    quarter = 0.08 - 0.04 * 0.5 * (1 + math.cos(math.pi / 4))
    assert found == pytest.approx([0.04, quarter, 0.06, 0.08, 0.08])
    assert weight_decay_at(replace(config, final_weight_decay=None), 3) == 0.04
    optimizer = build_optimizer(_task().module, config)
    set_rates(optimizer, config, 2)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.06), 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("ema", 1.0), ("accumulate", 0), ("precision", "float16"), ("final_weight_decay", -0.1),
     ("hold", 1.0), ("warmup_start", 2.0), ("lr_batch", -1), ("nonfinite_steps", 0)],
)  # fmt: skip
def test_wrong_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=field):
        OptimConfig(**{"steps": 1, field: value})
    with pytest.raises(UserError, match="refine_share"):
        TransformerLossConfig(refine_share=1.5)


def test_averages_in_closed_form(assert_same: Same) -> None:
    """Three updates: s = d^3 w0 + (1 - d)(d^2 w1 + d w2 + w3); a frozen weight stays itself."""
    module = nn.Sequential(
        nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False), nn.BatchNorm1d(2)
    )
    ema = Ema(module, 0.8)
    first = copy.deepcopy(module.state_dict())
    expected = first["0.weight"] * 0.8**3
    for power in (2, 1, 0):
        with torch.no_grad():
            module[0].weight.copy_(torch.rand(2, 3))
            module[1].weight.add_(1.0)
            module[2].running_mean.add_(1.0)
        expected = expected + 0.2 * 0.8**power * module[0].weight.detach()
        ema.update()
    own = copy.deepcopy(module.state_dict())
    assert ema.state_dict().keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    with ema.applied():
        torch.testing.assert_close(module[0].weight.detach(), expected)
        assert torch.equal(module[1].weight, own["1.weight"])
        assert torch.equal(module[2].running_mean, own["2.running_mean"])
        inside = copy.deepcopy(module.state_dict())
    assert_same(dict(module.state_dict()), dict(own))
    assert_same(finished_weights({"module": own, "ema": ema.state_dict()}), dict(inside))


def test_averages_follow_codes_that_were_replaced() -> None:
    module = nn.ModuleDict({"codes": nn.Embedding(4, 2), "linear": nn.Linear(2, 2)})
    ema = Ema(module, 0.9)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(1.0)
        ema.update()
        before = {name: tensor.clone() for name, tensor in ema.shadow.items()}
        with ema.following():
            module["codes"].weight[2] = 7.0
    assert ema.shadow["codes.weight"][2].tolist() == [7.0, 7.0]
    others = [0, 1, 3]
    assert torch.equal(ema.shadow["codes.weight"][others], before["codes.weight"][others])
    assert torch.equal(ema.shadow["linear.weight"], before["linear.weight"])


def test_no_averages_where_they_are_off() -> None:
    module = nn.Linear(2, 2)
    ema = Ema(module, 0.0)
    ema.update()
    with ema.following(), ema.applied():
        pass
    assert ema.state_dict() == {}


def test_the_codebook_of_averaged_weights_is_the_tokenizers() -> None:
    state = _run(replace(OPTIM, ema=0.9))[8]
    finished = finished_weights(state)
    own = _tokenizer().quantizer.state_dict()
    for name, tensor in own.items():
        assert torch.equal(finished[f"model.quantizer.{name}"], tensor)
    head = "model.head.weight"
    assert not torch.equal(finished[head], state["module"][head])


def test_micro_batches_have_the_batchs_gradient_and_metrics() -> None:
    """11 samples in 4 parts of 3, 3, 3 and 2: each counts by its share."""
    logged: list[dict[str, float]] = []
    gradients = []
    for parts in (1, 4):
        optim = replace(OPTIM, steps=1, batch_size=11, accumulate=parts, clip=0.0)
        task = _task(optim, **LOSS)
        fit(task, optim, _batches(11), log=Log(write=lambda _, metrics: logged.append(metrics)))
        gradients.append({n: p.grad for n, p in task.module.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)
    split = split_batch(next(_batches(11)(0)), 4)
    assert [len(part.inputs) for part in split] == [3, 3, 3, 2]
    assert {part.global_size for part in split} == {11}
    assert [len(part.inputs) for part in split_batch(next(_batches(5)(0)), 4)] == [2, 1, 1, 1]


def test_workers_gradients_meet_at_the_last_part() -> None:
    """``no_sync`` around all parts but the last, as distributed modules need it."""
    events: list[str] = []

    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, batch: Batch, step: int) -> Any:
            events.append(f"forward {len(batch.inputs)}")
            return self.module(batch, step)

        @contextmanager
        def no_sync(self) -> Iterator[None]:
            events.append("apart")
            yield
            events.append("together")

    class Wrapping(Alone):
        def wrap(self, module: nn.Module) -> nn.Module:
            return Wrapped(module)

    optim = replace(OPTIM, steps=1, accumulate=3)
    fit(_task(optim), optim, _batches(), reduce=Wrapping())
    apart = ["apart", "forward 3", "together"]
    assert events == [*apart, *apart, "forward 2"]


def _gradients(task: TransformerTask, half: bool = False) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss, _ = task.module(next(_batches()(0)), 1)
    loss.backward()
    named = task.module.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None}


def test_computing_blocks_again_leaves_the_gradient() -> None:
    plain, again = _gradients(_task()), _gradients(_task(replace(OPTIM, recompute=True)))
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_computing_blocks_again_keeps_less() -> None:
    def kept(task: TransformerTask) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            task.module(next(_batches()(0)), 1)
        return sum(sizes)

    assert kept(_task(replace(OPTIM, recompute=True))) < 0.6 * kept(_task())


def test_compiled_blocks_leave_the_gradient() -> None:
    task = _task()
    arrange(task.model, replace(OPTIM, compile=True), backend="eager")
    compiled, plain = _gradients(task), _gradients(_task())
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-6)


def test_compiling_and_computing_again_go_together() -> None:
    task = _task()
    arrange(task.model, replace(OPTIM, compile=True, recompute=True), backend="eager")
    both, plain = _gradients(task), _gradients(_task())
    for name, gradient in plain.items():
        torch.testing.assert_close(both[name], gradient, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_near_float32_and_keeps_weights_head_and_map() -> None:
    optim = replace(OPTIM, precision="bfloat16")
    plain, half = _gradients(_task()), _gradients(_task(optim), half=True)
    assert {gradient.dtype for gradient in half.values()} == {torch.float32}
    differ = 0
    for name, gradient in plain.items():
        apart = float((half[name] - gradient).norm() / gradient.norm().clamp_min(1e-6))
        assert apart < 0.1, name
        differ += apart > 1e-4
    assert differ > 5  # products really were in bfloat16
    task = _task(optim)
    seen: dict[str, torch.dtype] = {}
    task.model.head.register_forward_hook(lambda m, i, out: seen.update(head=out.dtype))
    task.model.word_embed.register_forward_hook(
        lambda m, i, out: seen.update(map=i[0].dtype, embed=out.dtype)
    )
    fit(task, replace(optim, steps=1), _batches())
    assert seen == {"head": torch.float32, "map": torch.float32, "embed": torch.bfloat16}
    assert task.model.head.weight.dtype == torch.float32


def test_masses_of_scales() -> None:
    """HMAR's on the 256-pixel schedule, to the three digits published; uniform is by length."""
    schedule = ScaleSchedule(PATCH_NUMS_256)
    bell = [0.025, 0.064, 0.115, 0.138, 0.140, 0.133, 0.121, 0.105, 0.088, 0.071]
    assert scale_masses(schedule, "lognorm") == pytest.approx(bell, abs=6e-4)
    uniform = scale_masses(schedule, "uniform")
    assert (uniform[0], uniform[-1]) == pytest.approx((1 / 680, 256 / 680))
    for masses in (uniform, scale_masses(schedule, "lognorm")):
        assert sum(masses) == pytest.approx(1.0)
    assert scale_masses(ScaleSchedule((4,)), "lognorm") == [1.0]


def test_the_loss_weighs_scales_by_their_masses() -> None:
    task = _task(scale_weights="lognorm")
    loss, metrics = task.module(next(_batches()(0)), 0)
    masses = scale_masses(task.model.schedule, "lognorm")
    means = [metrics[f"nll_{side}x{side}"] for side in SIDES]
    expected = sum(mass * mean for mass, mean in zip(masses, means, strict=True))
    torch.testing.assert_close(loss.detach(), expected)
    plain, _ = _task().module(next(_batches()(0)), 0)
    assert float(loss.detach()) != pytest.approx(float(plain.detach()), abs=1e-4)


def test_an_unconditional_model_sees_the_null_class_alone() -> None:
    task = _task(model=replace(TRANSFORMER, num_classes=1, unconditional=True))
    fed: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    loss, _ = task.module(next(_batches()(0)), 0)
    loss.backward()
    assert set(fed[0].tolist()) == {1}
    gradient = task.model.class_emb.weight.grad
    assert gradient is not None
    assert not gradient[0].any()
    assert gradient[1].any()


class _Faulty(nn.Module):
    """A loss of w^2, infinite at given steps, with two scales' NLLs."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, 2))
        self.bad = bad

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        fine = self.w.square().sum()
        broken = fine * (math.nan if step in self.bad else 1.0)
        return fine + broken, {"loss": fine + broken, "nll_1x1": fine, "nll_4x4": broken}


class _FaultyTask(Trainable):
    def __init__(self, *bad: int) -> None:
        self.module = _Faulty(set(bad))


def test_steps_that_are_not_finite_are_left_out_up_to_a_limit() -> None:
    optim = replace(OPTIM, nonfinite_steps=3, ema=0.5, weight_decay=0.0)
    states: dict[int, Any] = {}
    logged: list[int] = []
    settings: dict[str, Any] = {
        "log": Log(write=lambda step, _: logged.append(step), every=1),
        "hooks": [checkpoint_hook(1, lambda at, state: states.update({at: copy.deepcopy(state)}))],
    }  # fmt: skip
    fit(_FaultyTask(2, 3), optim, _batches(), **settings)
    assert logged == [1, 2, 5, 6, 7, 8]
    assert sorted(states) == [1, 2, 5, 6, 7, 8]
    adam = states[8]["optimizer"]["state"][0]
    assert int(adam["step"]) == 6
    assert all(torch.isfinite(state["module"]["w"]).all() for state in states.values())
    states.clear()
    message = r"not finite at step 5, the last of 3 in a row; worst at scale 4x4.*nan"
    with pytest.raises(FloatingPointError, match=message):
        fit(_FaultyTask(2, 3, 4), optim, _batches(), **settings)
    assert sorted(states) == [1, 2]
    with pytest.raises(FloatingPointError, match="step 3; worst at scale 4x4"):
        fit(_FaultyTask(2), replace(OPTIM, nonfinite_steps=1), _batches())


def test_a_hook_runs_at_its_steps_with_the_weights_it_asks_for() -> None:
    """The second update is left out; the last one is the eighth."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"every": 2}, "faults": {"every": 2, "after_faults": True},
        "end": {"every": 3, "at_end": True}, "never": {"every": 0},
        "average": {"every": 4, "with_average": True},
    }  # fmt: skip
    task = _FaultyTask(1)
    steps: dict[str, list[int]] = {name: [] for name in kinds}
    weights: dict[str, Tensor] = {}

    def run(name: str, step: int) -> None:
        steps[name].append(step)
        weights[f"{name} {step}"] = task.module.get_parameter("w").detach().clone()

    hooks = [
        Hook(run=lambda step, _, name=name: run(name, step), **given)  # type: ignore[misc]
        for name, given in kinds.items()
    ]
    optim = replace(OPTIM, nonfinite_steps=2, ema=0.5)
    fit(task, optim, _batches(), hooks=hooks)
    assert steps == {
        "plain": [4, 6], "faults": [2, 4, 6], "end": [3, 6, 8], "never": [], "average": [4],
    }  # fmt: skip
    assert torch.equal(weights["plain 4"], weights["faults 4"])
    assert not torch.equal(weights["plain 4"], weights["average 4"])


def test_validation_at_intervals_sees_the_averages(assert_same: Same) -> None:
    optim = replace(OPTIM, ema=0.9)
    logged: dict[int, dict[str, float]] = {}
    seen: list[Tensor] = []
    task = _task(optim)

    def validate() -> dict[str, float]:
        seen.append(task.model.head.weight.detach().clone())
        return {"nll": 1.5}

    states: dict[int, Any] = {}
    ema = fit(
        task, optim, _batches(),
        log=Log(write=logged.__setitem__, every=5, validate=validate, validate_every=3),
        hooks=[checkpoint_hook(3, lambda at, state: states.update({at: copy.deepcopy(state)}))],
    )  # fmt: skip
    assert sorted(logged) == [3, 5, 6, 8]  # the last one is the caller's
    assert [step for step, metrics in logged.items() if "val_nll" in metrics] == [3, 6]
    assert "loss" in logged[3]
    for step, head in zip((3, 6), seen, strict=True):
        assert torch.equal(head, states[step]["ema"]["model.head.weight"])
    with ema.applied():
        assert torch.equal(task.model.head.weight, states[8]["ema"]["model.head.weight"])
    assert torch.equal(task.model.head.weight, states[8]["module"]["model.head.weight"])
    plain = _run(optim)
    assert_same(plain[8], states[8])


def test_the_uniform_loss_is_the_mean_over_all_codes() -> None:
    task = _task(label_drop=0.0, model=replace(TRANSFORMER, drop_path=0.0))
    batch = next(_batches()(0))
    loss, _ = task.module(batch, 0)
    logits = task.model(batch.labels_b, batch.inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.inputs.flatten())
    torch.testing.assert_close(loss, expected)

import copy
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd import Pipeline
from srdd.errors import UserError
from srdd.images import to_float
from srdd.metrics.classifier import ClassifierConfig
from srdd.train.classifier import ClassifierTask
from srdd.train.config import OptimConfig, TokenizerLossConfig, TransformerLossConfig
from srdd.train.loop import Log, checkpoint_hook, fit
from srdd.train.optim import build_optimizer, lr_at
from srdd.train.task import Batch, Task
from srdd.train.var.codebook import needy_scales
from srdd.train.var.tokenizer_task import TokenizerTask
from srdd.train.var.transformer import nll_per_scale
from srdd.train.var.transformer_task import TransformerTask
from srdd.train.workers import ALONE, Reduce
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.init import init_weights
from srdd.var.scales import ScaleSchedule
from srdd.var.tokenizer import Tokenizer

Same = Callable[[Any, Any], None]
MakePipeline = Callable[..., Pipeline]
SIDES = (1, 2, 4)
TOKENIZER = TokenizerConfig(
    resolution=8, patch_nums=SIDES, vocab_size=64, z_channels=4, ch=8, ch_mult=(1, 2),
    num_res_blocks=1,
)  # fmt: skip
TRANSFORMER = TransformerConfig(
    patch_nums=SIDES, num_classes=3, depth=2, width=16, num_heads=2, vocab_size=64, z_channels=4,
    drop_path=0.5,
)  # fmt: skip
OPTIM = OptimConfig(steps=12, batch_size=4, lr=3e-3, seed=5)


def _images(n: int = 24) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    coarse = torch.rand(n, 3, 2, 2, generator=draw)
    return (F.interpolate(coarse, size=(8, 8), mode="bilinear") * 255).to(torch.uint8)


def _codes(n: int = 24) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(64, (n, 21), generator=draw)


def _batches(inputs: Tensor, size: int) -> Callable[[int], Iterator[Batch]]:
    """The data in order, over and over."""

    def stream(step: int) -> Iterator[Batch]:
        while True:
            index_b = torch.arange(step * size, (step + 1) * size) % len(inputs)
            yield Batch(inputs[index_b], index_b % 3, index_b, size)
            step += 1

    return stream


def _tokenizer_task(optim: OptimConfig = OPTIM, **loss: Any) -> TokenizerTask:
    settings = {"restart_every": 4, "restart_until": 1.0, **loss}
    task = TokenizerTask(TOKENIZER, TokenizerLossConfig(**settings), optim)
    task.seed_codebook(_images())
    return task


def _transformer_task(optim: OptimConfig = OPTIM, label_drop: float = 0.4) -> TransformerTask:
    torch.manual_seed(0)
    tokenizer = Tokenizer(TOKENIZER)
    loss = TransformerLossConfig(label_drop=label_drop)
    return TransformerTask(TRANSFORMER, loss, optim, tokenizer, init_gate=1.0, init_head=1.0)


def _classifier_task(optim: OptimConfig = OPTIM) -> ClassifierTask:
    return ClassifierTask(ClassifierConfig(num_classes=3, resolution=8, ch=4, features=8), optim)


def _run(task: Task, inputs: Tensor, optim: OptimConfig = OPTIM, **settings: Any) -> dict[int, Any]:
    """Copies of the states after every second step."""
    states: dict[int, Any] = {}

    def keep(step: int, state: dict[str, Any]) -> None:
        states[step] = copy.deepcopy(state)

    batches = _batches(inputs, optim.batch_size)
    fit(task, optim, batches, hooks=[checkpoint_hook(2, keep)], **settings)
    return states


TASKS: list[Any] = [
    pytest.param(_tokenizer_task, _images, id="tokenizer"),
    pytest.param(_transformer_task, _codes, id="transformer"),
    pytest.param(_classifier_task, _images, id="classifier"),
]


@pytest.mark.parametrize(("build", "data"), TASKS)
@pytest.mark.parametrize("killed", [2, 6, 10])
def test_a_killed_run_resumes_exactly(
    assert_same: Same, build: Callable[[], Task], data: Callable[[], Tensor], killed: int
) -> None:
    """For the tokenizer a restart of unused codes falls between the checkpoint and its window."""
    whole = _run(build(), data())
    assert sorted(whole) == [2, 4, 6, 8, 10, 12]
    torch.manual_seed(99)
    torch.rand(7)
    resumed = _run(build(), data(), resume=whole[killed])
    assert sorted(resumed) == [step for step in whole if step > killed]
    for step, state in resumed.items():
        assert_same(state, whole[step])
    moved = [
        name
        for name, tensor in whole[12]["module"].items()
        if not torch.equal(tensor, whole[killed]["module"][name])
    ]
    assert moved


def test_a_finished_run_stays_as_it_is() -> None:
    task = _transformer_task()
    states = _run(task, _codes())
    assert _run(_transformer_task(), _codes(), resume=states[12]) == {}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, *(0.2 + 0.4 * (1 + math.cos(math.pi * i / 4)) for i in range(5))]),
    ],
)
def test_learning_rates(schedule: Any, expected: list[float]) -> None:
    """Two updates of warm-up, then down to ``final_lr`` at the last update, as in VAR."""
    config = OptimConfig(steps=7, lr=2.0, lr_schedule=schedule, final_lr=0.2, warmup=2 / 7)
    found = [lr_at(config, step) / 2.0 for step in range(7)]
    assert found == pytest.approx(expected)


def test_learning_rates_at_the_edges() -> None:
    assert lr_at(OptimConfig(steps=1, lr=1.0, warmup=0.0), 0) == 1.0
    ramp = OptimConfig(steps=4, lr=1.0, warmup=1.0)
    assert [lr_at(ramp, step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_loop_uses_and_logs_each_steps_rate() -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    task = _transformer_task()
    batches = _batches(_codes(), 4)
    fit(task, OPTIM, batches, log=Log(write=lambda step, m: seen.append((step, m)), every=5))
    assert [step for step, _ in seen] == [5, 10, 12]
    assert [m["lr"] for _, m in seen] == [lr_at(OPTIM, s) for s in (4, 9, 11)]
    assert {"loss", "nll_1x1", "nll_2x2", "nll_4x4", "grad_norm"} <= seen[0][1].keys()


def test_an_update_is_adamw_at_that_rate() -> None:
    """One step with every gradient equal to its sign: the parameters move by the rate."""
    config = replace(OPTIM, steps=2, warmup=1.0, lr=0.5, weight_decay=0.0, clip=0.0)
    model = nn.Linear(3, 2)

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            loss = model.weight.sum() * 7 - model.bias.sum()
            return loss, {"loss": loss}

    class SlopeTask(ClassifierTask):
        def __init__(self) -> None:
            self.module = Slope()  # type: ignore[assignment]

    before = copy.deepcopy(model.state_dict())
    fit(SlopeTask(), replace(config, steps=1), _batches(_codes(), 4))
    torch.testing.assert_close(model.weight, before["weight"] - 0.5)
    torch.testing.assert_close(model.bias, before["bias"] + 0.5)


def test_what_is_decayed() -> None:
    """VAR's rule: matrices and class embeddings, not positions, levels, biases, codebook."""
    task, tokens = _transformer_task(), _tokenizer_task()
    for module, plain in (
        (task.module, {"pos_start", "pos_embed", "level_embed.weight", "log_scale"}),
        (tokens.module, {"codebook.weight"}),
    ):
        names = {id(p): name for name, p in module.named_parameters()}
        decayed, rest = build_optimizer(module, OPTIM).param_groups
        assert decayed["weight_decay"] == OPTIM.weight_decay
        assert rest["weight_decay"] == 0
        assert decayed["betas"] == (0.9, 0.95)
        given = {names[id(p)] for p in rest["params"]}
        rest_matrices = {n for n in given if dict(module.named_parameters())[n].dim() > 1}
        assert {any(n.endswith(word) for word in plain) for n in rest_matrices} == {True}
        assert not [n for n in given if "quantizer" in n and module is task.module]
        wanted = {n for n, p in module.named_parameters() if p.requires_grad}
        assert given | {names[id(p)] for p in decayed["params"]} == wanted
    decayed_ids = {id(p) for p in build_optimizer(task.module, OPTIM).param_groups[0]["params"]}
    assert id(task.model.class_emb.weight) in decayed_ids


def test_the_gradient_is_clipped_by_its_norm() -> None:
    norms = {}
    for clip in (0.0, 0.01):
        task = _transformer_task()
        logged: list[dict[str, float]] = []
        config = replace(OPTIM, steps=1, clip=clip)
        log = Log(write=lambda _, m, to=logged: to.append(m))
        fit(task, config, _batches(_codes(), 4), log=log)
        grads = [p.grad for p in task.module.parameters() if p.grad is not None]
        norms[clip] = float(torch.stack([g.norm() for g in grads]).norm()), logged[0]["grad_norm"]
    assert norms[0.0][0] == pytest.approx(norms[0.0][1], rel=1e-5)
    assert norms[0.0][1] > 0.1
    assert norms[0.01][0] == pytest.approx(0.01, rel=1e-3)
    assert norms[0.01][1] == pytest.approx(norms[0.0][1], rel=1e-5)  # before clipping


class Worker(Reduce):
    """One of two workers, run in threads that meet at every sum."""

    def __init__(self, rank: int, barrier: threading.Barrier, parts: list[Any]) -> None:
        self.rank, self.world = rank, 2
        self._barrier, self._parts = barrier, parts

    def sum(self, tensor: Tensor) -> Tensor:
        self._parts[self.rank] = tensor.clone()
        self._barrier.wait(timeout=30)
        total = self._parts[0] + self._parts[1]
        self._barrier.wait(timeout=30)
        return total


def _together(work: Callable[[Worker], Any]) -> list[Any]:
    barrier, parts = threading.Barrier(2), [None, None]
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work, Worker(rank, barrier, parts)) for rank in (0, 1)]
        return [future.result(timeout=60) for future in futures]


def _slice(batch: Batch, rank: int) -> Batch:
    """Every second sample: a worker's share."""
    part = [t[rank::2] for t in (batch.inputs, batch.labels_b, batch.index_b)]
    return Batch(part[0], part[1], part[2], batch.global_size)


@pytest.mark.parametrize(("build", "data"), TASKS)
def test_the_mean_of_two_workers_gradients_is_the_whole_batchs(
    build: Callable[[OptimConfig], Task], data: Callable[[], Tensor]
) -> None:
    """Shares of 4 and 3 of 7 samples; what is logged is the mean over all samples."""
    optim = replace(OPTIM, steps=1, batch_size=7, clip=0.0)
    whole = next(_batches(data(), 7)(0))
    logged: list[dict[str, float]] = []

    def gradients(task: Task, batch: Batch, reduce: Any) -> dict[str, Tensor]:
        log = Log(write=lambda _, metrics: logged.append(metrics))
        fit(task, optim, lambda step: iter([batch]), reduce=reduce, log=log)
        named = task.module.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    tasks = [build(optim) for _ in range(3)]
    expected = gradients(tasks[0], whole, ALONE)
    shares = _together(lambda w: gradients(tasks[w.rank + 1], _slice(whole, w.rank), w))
    for name, gradient in expected.items():
        mean = (shares[0][name] + shares[1][name]) / 2
        bound = 1e-5 * float(gradient.abs().max()) + 1e-7
        torch.testing.assert_close(mean, gradient, atol=bound, rtol=1e-4)
    for name, value in logged[0].items():
        if name != "grad_norm":  # that of the own gradient: reducing is the wrapper's work
            assert [m[name] for m in logged[1:]] == pytest.approx([value] * 2, rel=1e-4)


def _usage(task: TokenizerTask) -> Tensor:
    return task.module.used_SV.sum(0)


def test_usage_is_counted_by_scale() -> None:
    task = _tokenizer_task()
    batch = next(_batches(_images(), 4)(0))
    task.module(batch, 0)
    codes_BL = task.tokenizer.encode(to_float(batch.inputs))
    for scale, (begin, end) in enumerate(task.tokenizer.schedule.spans):
        expected = torch.bincount(codes_BL[:, begin:end].flatten(), minlength=64)
        assert torch.equal(task.module.used_SV[scale], expected)


def _all_vectors(task: TokenizerTask, images: Tensor, *, residual: bool) -> Tensor:
    """Latent vectors of all images, scales and cells; ``residual``: what the scales left."""
    f = task.tokenizer.latent(to_float(images))
    codes_BL, quantizer = task.tokenizer.quantizer.encode(f), task.tokenizer.quantizer
    rows = []
    for side, increment in zip(SIDES, quantizer.increments(codes_BL), strict=True):
        rows.append(F.adaptive_avg_pool2d(f, side).permute(0, 2, 3, 1).reshape(-1, 4))
        if residual:
            f = f - increment
    return torch.cat(rows)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Without the product form, which rounds small distances away."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@pytest.mark.parametrize("vote", ["vector", "scale"])
@pytest.mark.parametrize("below", [0.0, 0.5])
@torch.no_grad()
def test_a_restart_replaces_exactly_the_dead_codes(below: float, vote: str) -> None:
    """Dead: used at most ``below`` times as often as all codes would be if used alike."""
    task = _tokenizer_task(restart_below=below, restart_vote=vote)
    stream = _batches(_images(), 4)(0)
    weight = task.tokenizer.quantizer.codebook.weight
    batches = [next(stream) for _ in range(4)]
    for step, batch in enumerate(batches):
        task.module(batch, step)
        used_SV = task.module.used_SV.double()
        if vote == "scale":  # each scale counts alike, however many vectors it has
            used_SV = used_SV / used_SV.sum(1, keepdim=True)
        unused = used_SV.sum(0) <= below * used_SV.sum() / 64
        before = weight.clone()
        task.after_step(batch, step, ALONE)
        if step < 3:
            assert torch.equal(weight, before)
    assert 0 < int(unused.sum()) < 64
    changed = (weight != before).any(1)
    assert torch.equal(changed, unused)
    assert not task.module.used_SV.any()  # a new window
    # Their new values are residuals of the last batch, as the codebook saw them before.
    with torch.no_grad():
        after = weight.clone()
        weight.copy_(before)
        pool = _all_vectors(task, batches[-1].inputs, residual=True)
        weight.copy_(after)
    distance = _distances(after[unused], pool).min(1).values
    assert float(distance.max()) < 1e-5
    assert len(after[unused].unique(dim=0)) > 5


def test_restarts_go_where_codes_are_lacking() -> None:
    """Scale 1 uses all codes; 2x2 lacks 0.4 of them and 4x4 0.1: 4 * 0.4 against 16 * 0.1."""
    schedule = ScaleSchedule((1, 2, 4))
    used_SV = torch.zeros(3, 10, dtype=torch.int64)
    used_SV[0], used_SV[1, :5], used_SV[2, :8] = 1, 1, 1
    draws = torch.linspace(0, 1, 1001, dtype=torch.float64)
    share_S = torch.bincount(needy_scales(used_SV, schedule, draws), minlength=3) / 1001
    torch.testing.assert_close(share_S, torch.tensor([0.0, 0.5, 0.5]), atol=1e-3, rtol=0)
    used_SV[:] = 1
    share_S = torch.bincount(needy_scales(used_SV, schedule, draws), minlength=3) / 1001
    torch.testing.assert_close(share_S, torch.tensor([1.0, 4.0, 16.0]) / 21, atol=2e-3, rtol=0)


@torch.no_grad()
def test_restarts_stop_late_in_training_and_can_be_turned_off() -> None:
    for settings, step in (({"restart_until": 0.5}, 7), ({"restart_every": 0}, 3)):
        task = _tokenizer_task(**settings)
        batch = next(_batches(_images(), 4)(0))
        task.module(batch, step)
        before = task.tokenizer.quantizer.codebook.weight.clone()
        task.after_step(batch, step, ALONE)
        assert torch.equal(task.tokenizer.quantizer.codebook.weight, before)
        assert bool(task.module.used_SV.any()) == (settings.get("restart_every") == 0)


def test_usage_is_logged_before_a_restart_forgets_it() -> None:
    """Logging and restarts fall on the same steps by default, every hundredth."""
    logged: list[dict[str, float]] = []
    task = _tokenizer_task()
    log = Log(write=lambda _, m: logged.append(m), every=4)
    fit(task, OPTIM, _batches(_images(), 4), log=log)
    assert len(logged) == 3
    for metrics in logged:
        for side in SIDES:
            usage = metrics[f"usage_{side}x{side}"]
            assert 1 / 64 <= usage <= 1
            assert 1 <= metrics[f"perplexity_{side}x{side}"] <= 64 * usage + 1e-6


@torch.no_grad()
def test_two_workers_restart_as_one_does() -> None:
    tasks = [_tokenizer_task() for _ in range(3)]
    whole = next(_batches(_images(), 7)(0))
    before = tasks[0].tokenizer.quantizer.codebook.weight.clone()

    def work(task: TokenizerTask, batch: Batch, reduce: Any) -> Tensor:
        with torch.no_grad():
            task.module(batch, 3)
            task.after_step(batch, 3, reduce)
        return task.tokenizer.quantizer.codebook.weight

    expected = work(tasks[0], whole, ALONE)
    found = _together(lambda w: work(tasks[w.rank + 1], _slice(whole, w.rank), w))
    assert torch.equal(found[0], found[1])
    assert torch.equal((found[0] != before).any(1), (expected != before).any(1))
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


def test_usage_survives_a_change_of_the_number_of_workers() -> None:
    tasks = [_tokenizer_task() for _ in range(2)]
    for task, batch in zip(tasks, (next(_batches(_images(), 4)(s)) for s in (0, 1)), strict=True):
        task.module(batch, 0)
    total = tasks[0].module.used_SV + tasks[1].module.used_SV
    own = [task.module.used_SV.clone() for task in tasks]
    states = _together(lambda w: tasks[w.rank].state_dict(w))
    assert torch.equal(states[0]["used_SV"], total)
    assert torch.equal(states[1]["used_SV"], total)
    assert not torch.equal(own[0], own[1])
    alone = _tokenizer_task()
    alone.load_state_dict(states[0], ALONE)
    assert torch.equal(alone.module.used_SV, total)
    restored = [_tokenizer_task() for _ in range(2)]
    _together(lambda w: restored[w.rank].load_state_dict(states[0], w))
    assert torch.equal(sum(task.module.used_SV for task in restored), total)


@torch.no_grad()
def test_the_codebook_is_seeded_with_latents_of_every_scale() -> None:
    task = _tokenizer_task()
    weight = task.tokenizer.quantizer.codebook.weight
    pool = _all_vectors(task, _images(), residual=False)
    distance = _distances(weight, pool)
    assert float(distance.min(1).values.max()) < 1e-5
    sizes = torch.tensor([24 * side * side for side in SIDES])
    scale_of = torch.repeat_interleave(torch.arange(3), sizes)[distance.argmin(1)]
    assert torch.bincount(scale_of, minlength=3).min() > 64 / 3 / 2
    task.module(next(_batches(_images(), 24)(0)), 0)
    assert int((_usage(task) > 0).sum()) > 20


def test_the_tokenizers_loss_is_the_weighted_sum_of_its_parts() -> None:
    config = TokenizerLossConfig(l1=0.3, l2=2.0, vq=0.7)
    task = TokenizerTask(TOKENIZER, config, OPTIM)
    batch = next(_batches(_images(), 4)(0))
    loss, metrics = task.module(batch, 0)
    parts = {name: float(metrics[name]) for name in ("l1", "l2", "vq")}
    assert float(loss) == pytest.approx(0.3 * parts["l1"] + 2 * parts["l2"] + 0.7 * parts["vq"])
    scales = [float(metrics[f"vq_{side}x{side}"]) for side in SIDES]
    assert parts["vq"] == pytest.approx(sum(scales) / 3)
    images = to_float(batch.inputs)
    assert images.min() >= -1
    assert images.max() <= 1
    decoded = task.tokenizer.decode(task.tokenizer.encode(images))
    error = (decoded - images).square().flatten(1).mean(1) / 4
    assert float(metrics["psnr"]) == pytest.approx(float(-10 * error.log10().mean()), rel=1e-4)


def test_the_decoders_gradient_passes_straight_through_to_the_encoder() -> None:
    task = TokenizerTask(TOKENIZER, TokenizerLossConfig(vq=0.0), OPTIM)
    loss, _ = task.module(next(_batches(_images(), 4)(0)), 0)
    loss.backward()
    tokenizer = task.tokenizer
    assert tokenizer.encoder.conv_in.weight.grad.abs().sum() > 0
    assert tokenizer.decoder.conv_in.weight.grad.abs().sum() > 0
    quantizer = [p.grad for p in tokenizer.quantizer.parameters()]
    assert all(g is None or not g.any() for g in quantizer)


def test_nll_by_scale_sums_to_the_cross_entropy(make_pipeline: MakePipeline) -> None:
    model = make_pipeline().transformer
    codes_BL = torch.randint(32, (5, 30))
    logits = model(torch.arange(5), codes_BL)
    nll_BL, means = nll_per_scale(model, logits, codes_BL)
    whole = F.cross_entropy(logits.flatten(0, 1), codes_BL.flatten())
    sides = (1, 2, 3, 4)
    assert list(means) == [f"nll_{side}x{side}" for side in sides]
    weighted = sum(means[f"nll_{side}x{side}"] * side * side for side in sides) / 30
    torch.testing.assert_close(weighted, whole)
    torch.testing.assert_close(nll_BL.mean(), whole)
    log_probs = logits.double().log_softmax(-1)
    assert float(nll_BL[3, 17]) == pytest.approx(
        -float(log_probs[3, 17, codes_BL[3, 17]]), rel=1e-5
    )


def _labels_fed(task: TransformerTask, batch: Batch, step: int) -> Tensor:
    fed: list[Tensor] = []
    handle = task.model.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    task.module(batch, step)
    handle.remove()
    return fed[0]


@torch.no_grad()
def test_labels_are_dropped_by_seed_step_and_sample() -> None:
    task = _transformer_task()
    n = 3000
    codes, index_b = _codes(1).expand(n, -1), torch.arange(n)
    batch = Batch(codes, index_b % 3, index_b, n)
    fed = _labels_fed(task, batch, 0)
    dropped = fed == 3
    assert torch.equal(fed[~dropped], (index_b % 3)[~dropped])
    assert float(dropped.double().mean()) == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / n))
    order = torch.randperm(n)[:50]
    part = Batch(codes[:50], (index_b % 3)[order], order, n)
    assert torch.equal(_labels_fed(task, part, 0), fed[order])
    later = _labels_fed(task, batch, 1) == 3
    other = _labels_fed(_transformer_task(replace(OPTIM, seed=6)), batch, 0) == 3
    for again in (later, other):  # independent: 0.4 squared fall into both
        both = float((again & dropped).double().mean())
        assert both == pytest.approx(0.16, abs=0.03)
    assert not (_labels_fed(_transformer_task(label_drop=0.0), batch, 0) == 3).any()


def test_stochastic_depth_is_drawn_anew_each_step() -> None:
    task = _transformer_task(label_drop=0.0)
    batch = next(_batches(_codes(), 8)(0))
    losses = [float(task.module(batch, step)[0]) for step in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(("build", "data"), TASKS)
def test_a_loss_that_is_not_finite_stops_at_its_step(
    build: Callable[[], Task], data: Callable[[], Tensor]
) -> None:
    task = build()
    saved: list[int] = []

    def spoil(step: int, metrics: dict[str, float]) -> None:
        if step == 2:
            parameters = [p for p in task.module.parameters() if p.requires_grad]
            parameters[-1].data.fill_(math.nan)

    with pytest.raises(FloatingPointError, match="step 3"):
        fit(
            task, OPTIM, _batches(data(), 4), log=Log(write=spoil, every=1),
            hooks=[checkpoint_hook(1, lambda step, state: saved.append(step))],
        )  # fmt: skip
    assert saved == [1, 2]


def test_the_transformer_takes_the_tokenizers_codebook_and_keeps_it(assert_same: Same) -> None:
    tokenizer = Tokenizer(TOKENIZER)
    task = TransformerTask(TRANSFORMER, TransformerLossConfig(), OPTIM, tokenizer)
    _run(task, _codes())
    own, frozen = tokenizer.quantizer.state_dict(), task.model.quantizer.state_dict()
    assert_same(dict(own), dict(frozen))
    with pytest.raises(UserError, match="vocab_size"):
        TransformerTask(
            replace(TRANSFORMER, vocab_size=65), TransformerLossConfig(), OPTIM, tokenizer
        )


def test_a_task_is_built_from_its_seed_alone(assert_same: Same) -> None:
    for build in (_tokenizer_task, _transformer_task, _classifier_task):
        torch.rand(3)
        first = build().module.state_dict()
        torch.rand(5)
        assert_same(dict(first), dict(build().module.state_dict()))
        other = build(replace(OPTIM, seed=6)).module.state_dict()
        assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_building_a_task_leaves_torchs_generator_alone() -> None:
    """Global state: two tasks in one process, or a caller's own draws, must not be correlated."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    _classifier_task()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("build", "data"), TASKS)
def test_training_learns(build: Callable[[OptimConfig], Task], data: Callable[[], Tensor]) -> None:
    """Eight samples, over and over."""
    optim = OptimConfig(steps=60, batch_size=8, lr=1e-2, weight_decay=0.0)
    losses: list[float] = []
    log = Log(write=lambda _, metrics: losses.append(metrics["loss"]), every=1)
    fit(build(optim), optim, _batches(data()[:8], 8), log=log)
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_a_shared_aln_starts_with_closed_gates() -> None:
    task = TransformerTask(
        replace(TRANSFORMER, shared_aln=True), TransformerLossConfig(), OPTIM, Tokenizer(TOKENIZER)
    )
    rows = task.model.layers[0].ada_gss.detach()[0, 0].std(1)
    assert rows[:2].max() < 1e-3
    assert rows[2:].min() > 0.05
    init_weights(task.model, gate=1.0)
    assert not task.model.shared_ada_lin.bias.any()

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srdd import Pipeline, SamplerConfig, sample, sample_stream
from srdd.errors import UserError
from srdd.generator import result_of
from srdd.presets import digits
from srdd.var import guidance, sampling
from srdd.var.categorical import draw, truncate
from srdd.var.init import init_weights
from srdd.var.masks import MASKS, Mask
from srdd.var.scales import ScaleSchedule
from srdd.var.state import SampleState
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

MakePipeline = Callable[..., Pipeline]
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])
SEEDS = list(range(100, 107))
BOTH: list[Mask] = ["block_causal", "markov"]


def _vars_filter(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """VAR's ``sample_with_top_k_top_p_`` up to the draw, one row at a time in plain loops."""
    out = logits.clone()
    for row in out.view(-1, out.shape[-1]):
        if top_k > 0:
            floor = sorted(row.tolist(), reverse=True)[top_k - 1]
            for i, value in enumerate(row.tolist()):
                if value < floor:
                    row[i] = -torch.inf
        if top_p > 0:
            probs = row.double().softmax(-1).tolist()
            ascending = sorted(range(len(probs)), key=lambda i: (probs[i], i))
            mass = 0.0
            for i in ascending[:-1]:
                mass += probs[i]
                if mass <= 1 - top_p:
                    row[i] = -torch.inf
    return out.double().softmax(-1)


@pytest.mark.parametrize("top_k", [0, 1, 3, 20, 32])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.05])
def test_truncation_is_vars_rule(top_k: int, top_p: float) -> None:
    logits = torch.randn(2, 4, 32) * 3
    config = SamplerConfig(top_k=top_k, top_p=top_p)
    kept = truncate(logits.softmax(-1), config)
    expected = _vars_filter(logits, top_k, top_p if top_p < 1 else 0.0)
    found = kept.double() / kept.double().sum(-1, keepdim=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(found > 0, expected > 0)


@pytest.mark.parametrize("top_k", [0, 900])
@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_truncation_is_vars_rule_at_the_published_size(top_k: int, top_p: float) -> None:
    logits = torch.randn(2, 3, 4096) * 3
    kept = truncate(logits.softmax(-1), SamplerConfig(top_k=top_k, top_p=top_p)).double()
    expected = _vars_filter(logits, top_k, top_p if top_p < 1 else 0.0)
    assert torch.equal(kept > 0, expected > 0)
    assert bool((kept > 0).all()) == (top_k == 0 and top_p == 1)
    found = kept / kept.sum(-1, keepdim=True)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-4)


def test_ties_with_the_kth_code_stay() -> None:
    probs = torch.tensor([[[0.1, 0.3, 0.1, 0.1, 0.4]]])
    kept = truncate(probs, SamplerConfig(top_k=3))
    assert torch.equal(kept, probs)
    assert torch.equal(
        truncate(probs, SamplerConfig(top_k=2)), torch.tensor([[[0, 0.3, 0, 0, 0.4]]])
    )


def test_a_tie_at_the_nucleus_drops_by_mass_not_by_value() -> None:
    """Four equal codes and top_p = 0.5: the first two, half of the mass, go; VAR's strictness."""
    kept = truncate(torch.full((1, 1, 4), 0.25), SamplerConfig(top_p=0.5))
    assert int((kept > 0).sum()) == 2
    one = truncate(torch.tensor([[[0.5, 0.5]]]), SamplerConfig(top_p=0.001))
    assert int((one > 0).sum()) == 1


def test_truncation_happens_in_the_order_epsilon_k_p() -> None:
    probs = torch.tensor([[[0.05, 0.15, 0.2, 0.25, 0.35]]])
    kept = truncate(probs, SamplerConfig(epsilon=0.1, top_k=3, top_p=0.7))
    # top_k leaves 0.2, 0.25, 0.35 (sum 0.8): the tail of at most 0.3 * 0.8 is the 0.2.
    assert torch.equal(kept, torch.tensor([[[0, 0, 0, 0.25, 0.35]]]))
    assert torch.equal(
        truncate(probs, SamplerConfig(epsilon=0.15)), torch.tensor([[[0, 0.15, 0.2, 0.25, 0.35]]])
    )


def test_epsilon_beyond_every_code_leaves_the_distribution() -> None:
    """What resampling without feedback tends to there: every draw is a candidate again."""
    probs = torch.tensor([[[0.3, 0.3, 0.4], [0.05, 0.05, 0.9]]])
    kept = truncate(probs, SamplerConfig(epsilon=0.5))
    assert torch.equal(kept[0, 0], probs[0, 0])
    assert torch.equal(kept[0, 1], torch.tensor([0, 0, 0.9]))


def test_a_code_of_probability_zero_is_never_drawn() -> None:
    probs = torch.tensor([0.0, 0.25, 0.0, 0.0, 0.75, 0.0]).expand(1, 7, 6)
    edges = [[0.0, 2.0**-32, 0.25 - 2.0**-32, 0.25, 0.5, 0.75, 1 - 2.0**-32]]
    drawn = draw(probs, torch.tensor(edges, dtype=torch.float64), SamplerConfig())
    assert drawn.tolist() == [[1, 1, 1, 4, 4, 4, 4]]


@pytest.mark.parametrize("total", [1.0, 1e-3, 1 - 2**-23, 0.1 + 0.2])
def test_a_draw_never_leaves_the_vocabulary(total: float) -> None:
    probs = torch.rand(5, 8, 33) * total
    probs[..., -1] = 0
    largest = torch.full((5, 8), 1 - 2.0**-32, dtype=torch.float64)
    drawn = draw(probs, largest, SamplerConfig())
    assert int(drawn.max()) < 32
    assert torch.equal(draw(probs, torch.zeros_like(largest), SamplerConfig()), 0 * drawn)


def test_frequencies_match_the_probabilities() -> None:
    probs = torch.randn(8).mul(2).softmax(-1)
    u = torch.arange(100_000, dtype=torch.float64)[None].add(0.5).div(100_000)
    drawn = draw(probs.expand(1, 100_000, 8), u, SamplerConfig())
    found = torch.bincount(drawn[0], minlength=8) / 100_000
    torch.testing.assert_close(found, probs, atol=2e-5, rtol=0)


def test_ramps() -> None:
    schedule = ScaleSchedule((1, 2, 3, 4, 5))
    pruned = schedule.prune((1, 3, 5))
    linear = SamplerConfig(cfg=2.0)
    assert guidance.weights(linear, schedule) == (0, 0.5, 1, 1.5, 2)
    assert guidance.weights(linear, pruned) == (0, 1, 2)
    constant = SamplerConfig(cfg=2.0, cfg_ramp="constant")
    assert guidance.weights(constant, pruned) == (2, 2, 2)
    window = SamplerConfig(cfg=2.0, cfg_ramp="window", cfg_window=(0.25, 0.75))
    assert guidance.weights(window, schedule) == (0, 2, 2, 2, 0)
    assert guidance.weights(window, pruned) == (0, 2, 0)
    assert guidance.weights(linear, ScaleSchedule((3,))) == (0,)


def test_guidance_before_the_head_equals_guidance_of_logits(make_pipeline: MakePipeline) -> None:
    head = make_pipeline().transformer.head
    conditional, unconditional = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    early = head(guidance.combine(conditional, unconditional, 3.0))
    late = (1 + 3.0) * head(conditional) - 3.0 * head(unconditional)
    torch.testing.assert_close(early, late, atol=1e-4, rtol=1e-4)


def _greedy(pipeline: Pipeline, labels_B: Tensor, cfg: float, ramp: str) -> Tensor:
    """The likeliest codes from teacher-forced logits alone: no cache, no sampler."""
    model = pipeline.transformer
    schedule = model.schedule
    null_B = torch.full_like(labels_B, model.null_class)
    codes_BL = torch.zeros(len(labels_B), schedule.length, dtype=torch.int64)
    for scale, (begin, end) in enumerate(schedule.spans):
        logits = model(labels_B, codes_BL)[:, begin:end]
        t = cfg * {"linear": scale / (schedule.num_scales - 1), "constant": 1.0}[ramp]
        guided = (1 + t) * logits - t * model(null_B, codes_BL)[:, begin:end]
        codes_BL[:, begin:end] = guided.argmax(-1)
    return codes_BL


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("cfg", "ramp"), [(0.0, "linear"), (2.5, "linear"), (2.5, "constant")])
def test_sampling_greedily_follows_the_guided_logits(
    make_pipeline: MakePipeline, mask: Mask, cfg: float, ramp: Any
) -> None:
    pipeline = make_pipeline(mask)
    result = sample(pipeline, LABELS, SamplerConfig(cfg=cfg, cfg_ramp=ramp, top_k=1), SEEDS)
    assert torch.equal(result.codes_BL, _greedy(pipeline, LABELS, cfg, ramp))


def test_guidance_changes_the_codes(make_pipeline: MakePipeline) -> None:
    plain = sample(make_pipeline(), LABELS, SamplerConfig(), SEEDS)
    guided = sample(make_pipeline(), LABELS, SamplerConfig(cfg=3.0), SEEDS)
    assert torch.equal(plain.codes_BL[:, :1], guided.codes_BL[:, :1])  # the first is not guided
    assert not torch.equal(plain.codes_BL, guided.codes_BL)


@pytest.mark.parametrize("mask", MASKS)
def test_without_guidance_one_half_runs(make_pipeline: MakePipeline, mask: Mask) -> None:
    """And its codes are the conditional ones, whatever the null class would say."""
    pipeline = make_pipeline(mask)
    plain = sample(pipeline, LABELS, SamplerConfig(cfg=0.0), SEEDS)
    assert plain.nfe.tolist() == [4] * 7
    deaf = copy.deepcopy(pipeline.transformer)
    deaf.class_emb.weight[deaf.null_class] = 99.0
    other = Pipeline(pipeline.tokenizer, deaf, pipeline.sampler, pipeline.class_names)
    assert torch.equal(sample(other, LABELS, SamplerConfig(), SEEDS).images, plain.images)
    guided = SamplerConfig(cfg=1.0)
    assert not torch.equal(
        sample(other, LABELS, guided, SEEDS).codes_BL,
        sample(pipeline, LABELS, guided, SEEDS).codes_BL,
    )


def test_evaluations_are_counted_where_they_run(make_pipeline: MakePipeline) -> None:
    """Markov runs the unconditional half at guided scales alone; a cache wants all before them."""
    linear = SamplerConfig(cfg=1.0)
    assert sample(make_pipeline("markov"), LABELS, linear, SEEDS).nfe.tolist() == [7] * 7
    assert sample(make_pipeline("block_causal"), LABELS, linear, SEEDS).nfe.tolist() == [8] * 7
    window = SamplerConfig(cfg=1.0, cfg_ramp="window", cfg_window=(0.3, 0.4))
    assert sample(make_pipeline("markov"), LABELS, window, SEEDS).nfe.tolist() == [5] * 7


def test_images_are_those_of_the_codes(make_pipeline: MakePipeline) -> None:
    for mask in MASKS:
        pipeline = make_pipeline(mask)
        result = sample(pipeline, LABELS, SamplerConfig(cfg=1.0), SEEDS)
        decoded = pipeline.tokenizer.decode(result.codes_BL)
        assert torch.equal((decoded + 1) / 2, result.images)
        assert 0 <= result.images.min() < result.images.max() <= 1
        assert result.codes_BL.dtype == torch.int64


@pytest.mark.parametrize("mask", MASKS)
def test_samples_have_the_models_law(make_pipeline: MakePipeline, mask: Mask) -> None:
    """The mean NLL of drawn codes is the mean entropy of what they were drawn from."""
    pipeline = make_pipeline(mask)
    labels_B = torch.zeros(400, dtype=torch.int64)
    codes_BL = sample(pipeline, labels_B, SamplerConfig(), range(400)).codes_BL
    log_probs = pipeline.transformer(labels_B, codes_BL).log_softmax(-1)
    nll = -log_probs.gather(-1, codes_BL[..., None])[..., 0]
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    spread = float((nll - entropy).mean(1).std()) / 20
    assert abs(float((nll - entropy).mean())) < 4 * spread
    assert len(codes_BL.unique(dim=0)) == 400


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(cfg=2.0),
        SamplerConfig(cfg=2.0, refine_steps=2, resample_threshold=0.1, top_k=30, top_p=0.9),
        SamplerConfig(refine_steps=1, resample="simple", feedback="kept"),
    ],
    ids=["plain", "masked", "simple"],
)
def test_an_image_does_not_depend_on_its_batch(
    make_pipeline: MakePipeline, mask: Mask, config: SamplerConfig, batch: int
) -> None:
    pipeline = make_pipeline(mask)
    whole = sample(pipeline, LABELS, config, SEEDS)
    for begin in range(0, 7, batch):
        rows = slice(begin, begin + batch)
        part = sample(pipeline, LABELS[rows], config, SEEDS[rows])
        assert torch.equal(part.codes_BL, whole.codes_BL[rows])
        assert torch.equal(part.images, whole.images[rows])
        assert torch.equal(part.nfe, whole.nfe[rows])
        assert torch.equal(part.gflops, whole.gflops[rows])


@pytest.mark.parametrize("mask", BOTH)
def test_an_image_does_not_depend_on_its_batch_at_the_presets_size(mask: Mask) -> None:
    """Wider products choose other kernels: batches up to 32, guided and refined."""
    preset = digits()
    tokenizer = Tokenizer(preset.tokenizer)
    model = ScaleTransformer(replace(preset.transformer, mask=mask))
    init_weights(model, gate=1.0, head=20.0)
    with torch.no_grad():
        model.class_emb.weight.normal_()
        for block in model.layers:
            block.ada_lin.bias[:256] += 1
    model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    names = tuple(map(str, range(10)))
    pipeline = Pipeline(tokenizer.eval(), model.eval(), SamplerConfig(), names)
    config = SamplerConfig(cfg=2.0, refine_steps=1, resample_threshold=0.2)
    labels_B, seeds_B = torch.arange(32) % 10, torch.arange(32) * 7919
    whole = sample(pipeline, labels_B, config, seeds_B)
    for batch in (1, 2, 3, 4, 7):
        part = sample(pipeline, labels_B[-batch:], config, seeds_B[-batch:])
        assert torch.equal(part.codes_BL, whole.codes_BL[-batch:])
        assert torch.equal(part.images, whole.images[-batch:])
        assert torch.equal(part.nfe, whole.nfe[-batch:])


def test_a_seed_bears_on_its_image_alone(make_pipeline: MakePipeline) -> None:
    first = sample(make_pipeline(), LABELS, SamplerConfig(), SEEDS)
    again = sample(make_pipeline(), LABELS, SamplerConfig(), torch.tensor(SEEDS))
    assert torch.equal(first.images, again.images)
    other = sample(make_pipeline(), LABELS, SamplerConfig(), [*SEEDS[:3], 5, *SEEDS[4:]])
    changed = (first.codes_BL != other.codes_BL).any(1)
    assert changed.tolist() == [False] * 3 + [True] + [False] * 3


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_no_images_are_an_empty_result(make_pipeline: MakePipeline, mask: Mask, cfg: float) -> None:
    config = SamplerConfig(cfg=cfg, refine_steps=1)
    result = sample(make_pipeline(mask), torch.zeros(0, dtype=torch.int64), config, [])
    assert result.images.shape == (0, 3, 8, 8)
    assert result.codes_BL.shape == (0, 30)


def test_the_pipelines_own_settings_are_the_default(make_pipeline: MakePipeline) -> None:
    base = make_pipeline()
    own = SamplerConfig(cfg=2.0, top_k=5)
    pipeline = Pipeline(base.tokenizer, base.transformer, own, base.class_names)
    assert torch.equal(
        sample(pipeline, LABELS, None, SEEDS).images, sample(base, LABELS, own, SEEDS).images
    )


@pytest.mark.parametrize("mask", MASKS)
def test_previews_are_the_maps_built_so_far(make_pipeline: MakePipeline, mask: Mask) -> None:
    pipeline = make_pipeline(mask)
    config = SamplerConfig(cfg=1.0, refine_steps=1, resample_threshold=0.1)
    previews = list(sample_stream(pipeline, LABELS, config, SEEDS))
    result = sample(pipeline, LABELS, config, SEEDS)
    assert [preview.scale for preview in previews] == [0, 1, 2, 3]
    assert torch.equal(torch.cat([p.codes_Bl for p in previews], dim=1), result.codes_BL)
    assert torch.equal(previews[-1].images, result.images)
    first = pipeline.transformer.quantizer.increments(result.codes_BL)[0]
    expected = (pipeline.tokenizer.decode_latent(first) + 1) / 2
    assert torch.equal(previews[0].images, expected)
    assert not torch.equal(previews[0].images, previews[-1].images)


@pytest.mark.parametrize("mask", MASKS)
def test_states_can_be_joined_and_parted_between_scales(
    make_pipeline: MakePipeline, mask: Mask
) -> None:
    pipeline = make_pipeline(mask)
    config = SamplerConfig(cfg=1.0, refine_steps=1, resample_threshold=0.1)
    whole = sample(pipeline, LABELS, config, SEEDS)
    parts = [
        pipeline.begin(LABELS[rows], config, SEEDS[rows])
        for rows in (slice(0, 2), slice(2, 3), slice(3, 7))
    ]
    parts = [pipeline.advance(part) for part in parts]
    joined = pipeline.advance(SampleState.join(parts))
    assert len(joined) == 7
    states = [joined.select(rows) for rows in torch.arange(7).split([4, 3])]
    for _ in range(2):
        states = [pipeline.advance(state) for state in states]
    results = [result_of(state, pipeline.decode(state)) for state in states]
    assert torch.equal(torch.cat([r.codes_BL for r in results]), whole.codes_BL)
    assert torch.equal(torch.cat([r.images for r in results]), whole.images)
    assert torch.equal(torch.cat([r.nfe for r in results]), whole.nfe)
    assert torch.equal(torch.cat([r.gflops for r in results]), whole.gflops)


@pytest.mark.parametrize("mask", MASKS)
def test_pruning_nothing_is_the_identity(make_pipeline: MakePipeline, mask: Mask) -> None:
    pipeline = make_pipeline(mask)
    config = SamplerConfig(cfg=2.0, refine_steps=1)
    whole = sample(pipeline, LABELS, config, SEEDS)
    named = sample(pipeline, LABELS, replace(config, patch_nums=(1, 2, 3, 4)), SEEDS)
    assert torch.equal(whole.images, named.images)
    assert torch.equal(whole.codes_BL, named.codes_BL)
    assert torch.equal(whole.gflops, named.gflops)


@pytest.mark.parametrize("mask", MASKS)
def test_a_pruned_schedule_keeps_what_belongs_to_the_parents_scales(
    make_pipeline: MakePipeline,
    run_whole: Callable[..., Tensor],
    mask: Mask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Level and position rows, ramp, phi and random numbers; and the cache skips the scale."""
    pipeline = make_pipeline(mask)
    model = pipeline.transformer
    seen: dict[str, list[Any]] = {"position": [], "uniform": []}
    position, uniform = ScaleTransformer.position, sampling.uniform

    def spy_position(self: ScaleTransformer, parent_index: int) -> Tensor:
        seen["position"].append(parent_index)
        return position(self, parent_index)

    def spy_uniform(
        seeds: Tensor, stream: int, parent: Tensor | int, step: int, place: Tensor
    ) -> Tensor:
        parents = torch.as_tensor(parent).expand_as(place).tolist()
        seen["uniform"] += [(step, *where) for where in zip(parents, place.tolist(), strict=True)]
        return uniform(seeds, stream, parent, step, place)

    monkeypatch.setattr(ScaleTransformer, "position", spy_position)
    monkeypatch.setattr(sampling, "uniform", spy_uniform)
    config = SamplerConfig(patch_nums=(1, 2, 4), top_k=1)
    result = sample(pipeline, LABELS, config, SEEDS)
    first_draws = [(0, parent, i) for parent, n in ((0, 1), (1, 4), (3, 16)) for i in range(n)]
    assert seen == {"position": [0, 1, 3], "uniform": first_draws}
    monkeypatch.undo()

    # The last scale again, from the parts: blocks 0, 1 and 3 of the parent's input.
    schedule = ScaleSchedule((1, 2, 4), (1, 2, 3, 4))
    quantizer = model.quantizer
    codes_BL = result.codes_BL
    f_hat = quantizer.increment(quantizer.grid(codes_BL[:, :1], 1), 1)
    second = F.adaptive_avg_pool2d(f_hat, 2).flatten(2).transpose(1, 2)
    f_hat = f_hat + quantizer.increment(quantizer.grid(codes_BL[:, 1:5], 2), 2)
    conditioning = model.conditioning(LABELS)
    x_BLW = torch.cat(
        (
            model.start(conditioning),
            model.embed(second, 1),
            model.embed(f_hat.flatten(2).transpose(1, 2), 3),
        ),
        dim=1,
    )
    x_BLW = run_whole(model, x_BLW, conditioning, schedule)
    logits = model.head(model.before_head(x_BLW, conditioning))
    assert torch.equal(logits.argmax(-1), codes_BL)
    f_hat = f_hat + quantizer.increment(quantizer.grid(codes_BL[:, 5:], 4), 4)
    images = (pipeline.tokenizer.decode_latent(f_hat) + 1) / 2
    torch.testing.assert_close(images, result.images)


def test_pruned_trials_share_their_random_numbers(make_pipeline: MakePipeline) -> None:
    whole = sample(make_pipeline(), LABELS, SamplerConfig(), SEEDS)
    pruned = sample(make_pipeline(), LABELS, SamplerConfig(patch_nums=(1, 2, 4)), SEEDS)
    assert torch.equal(whole.codes_BL[:, :5], pruned.codes_BL[:, :5])
    assert pruned.codes_BL.shape == (7, 21)
    assert pruned.nfe.tolist() == [3] * 7


def test_an_unconditional_model_draws_without_a_class(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(num_classes=1, unconditional=True)
    labels_B = torch.zeros(2, dtype=torch.int64)
    result = sample(pipeline, labels_B, SamplerConfig(), [1, 2])
    codes_BL = result.codes_BL
    log_probs = pipeline.transformer(labels_B + 1, codes_BL).log_softmax(-1)
    assert log_probs.gather(-1, codes_BL[..., None]).min() > -12
    with pytest.raises(UserError, match="cfg must be 0: an unconditional model"):
        sample(pipeline, labels_B, SamplerConfig(cfg=1.0), [1, 2])


@pytest.mark.parametrize(
    ("labels", "config", "seeds", "said"),
    [
        ([0, 1], {}, [1], r"one seed an image: \[2\] labels, \[1\] seeds"),
        ([0, 9], {}, [1, 2], "classes must lie in"),
        ([0, -1], {}, [1, 2], "classes must lie in"),
        ([0, 1], {"top_k": 33}, [1, 2], "top_k 33 exceeds the vocabulary of 32"),
        ([0, 1], {"patch_nums": (2, 4)}, [1, 2], "patch_nums must begin at scale 1"),
        ([0, 1], {"patch_nums": (1, 3)}, [1, 2], "patch_nums .* must end at"),
        ([0, 1], {"patch_nums": (1, 4, 5)}, [1, 2], "patch_nums .* no scales of the model"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    make_pipeline: MakePipeline, labels: Any, config: Any, seeds: Any, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        sample(make_pipeline(), torch.tensor(labels), SamplerConfig(**config), seeds)


def test_logits_that_are_not_finite_name_their_scale(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(fresh=True)
    pipeline.transformer.level_embed.weight[2] = torch.nan
    with pytest.raises(FloatingPointError, match="3x3"):
        sample(pipeline, LABELS, SamplerConfig(), SEEDS)


def test_sampling_leaves_the_model_and_torchs_generator_alone(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline("block_causal")
    before = copy.deepcopy(pipeline.transformer.state_dict())
    state = torch.get_rng_state()
    sample(pipeline, LABELS, SamplerConfig(cfg=1.0, refine_steps=1), SEEDS)
    assert torch.equal(torch.get_rng_state(), state)
    after = pipeline.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_half_precision_leaves_head_and_codebook_as_they_were(make_pipeline: MakePipeline) -> None:
    """Rounded to bfloat16 and back they would no longer be the tokenizer's."""
    pipeline = make_pipeline(fresh=True)
    head = pipeline.transformer.head.weight.clone()
    assert pipeline.to("cpu", torch.bfloat16) is pipeline
    model = pipeline.transformer
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, head)
    own, frozen = pipeline.tokenizer.quantizer.state_dict(), model.quantizer.state_dict()
    assert all(torch.equal(own[name], frozen[name]) for name in own)
    result = sample(pipeline, LABELS, SamplerConfig(cfg=1.0, top_k=1), SEEDS)
    assert result.images.dtype == torch.float32
    assert torch.equal((pipeline.tokenizer.decode(result.codes_BL) + 1) / 2, result.images)


def test_classes_go_by_name_or_index(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline()
    assert pipeline.label("class 3") == 3
    assert pipeline.label("4") == 4
    for wrong in ("5", "-1", "cat", ""):
        with pytest.raises(UserError, match=f"no class '{wrong}'.*below 5"):
            pipeline.label(wrong)

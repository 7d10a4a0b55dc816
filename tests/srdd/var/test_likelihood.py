"""The claim, tested against enumeration: V = 2 and scales 1, 2, 3 have 16,384 code sequences."""

import itertools
import json
import math
import runpy
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srdd import Pipeline
from srdd.checkpoint import save_tensors
from srdd.errors import UserError
from srdd.train.var.transformer import nll_per_scale
from srdd.var.config import TransformerConfig
from srdd.var.init import init_weights
from srdd.var.likelihood import (
    changed_codes,
    input_blocks_that_matter,
    kept_codes,
    kept_map,
    kept_maps,
    likelihood,
    pruned_quantizer,
    scale_codes,
    seen_map,
)
from srdd.var.mask_tensors import build_mask
from srdd.var.masks import MASKS, Mask
from srdd.var.pipeline import save_tokenizer
from srdd.var.scales import ScaleSchedule
from srdd.var.snr import snr_per_scale
from srdd.var.transformer import ScaleTransformer

MakePipeline = Callable[..., Pipeline]
MARKOV = tuple(mask for mask in MASKS if mask.startswith("markov"))
SIDES = (1, 2, 3)
LABEL = 1


@cache
def _every_sequence(length: int, vocab_size: int = 2) -> Tensor:
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=length)))


@cache
def _tiny(mask: Mask, patch_nums: tuple[int, ...] = SIDES, vocab_size: int = 2) -> ScaleTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        patch_nums=patch_nums, mask=mask, num_classes=3, depth=2, width=16, num_heads=2,
        vocab_size=vocab_size, z_channels=4,
    )  # fmt: skip
    model = ScaleTransformer(config)
    init_weights(model, gate=1.0, head=6.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("quantizer."):
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return model.eval().requires_grad_(False)


@cache
def _table(mask: Mask) -> Tensor:
    """-ELBO of every sequence, by the function under test, in the order of the binary numbers."""
    codes_BL = _every_sequence(14)
    return -likelihood(_tiny(mask), torch.full((len(codes_BL),), LABEL), codes_BL).elbo_B


def _codes(schedule: ScaleSchedule, vocab_size: int = 32, batch: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(vocab_size, (batch, schedule.length), generator=draw)


def test_the_chain_drops_the_finest_scale_first(make_pipeline: MakePipeline) -> None:
    schedule = make_pipeline().transformer.schedule  # 1, 2, 3, 4
    codes_BL = torch.arange(30)[None].repeat(2, 1)
    states = [kept_codes(schedule, codes_BL, kept) for kept in range(5)]
    assert [state.shape for state in states] == [(2, 0), (2, 1), (2, 5), (2, 14), (2, 30)]
    for kept, state in enumerate(states):
        assert torch.equal(state, codes_BL[:, : state.shape[1]])
        assert kept == 0 or torch.equal(
            state, torch.cat((states[kept - 1], scale_codes(schedule, codes_BL, kept - 1)), 1)
        )


def test_the_map_of_a_state_is_the_decoded_map_without_the_finer_scales(
    make_pipeline: MakePipeline,
) -> None:
    quantizer = make_pipeline().tokenizer.quantizer
    codes_BL = _codes(quantizer.schedule)
    assert torch.equal(kept_map(quantizer, codes_BL, 4), quantizer.decode(codes_BL))
    assert torch.equal(kept_map(quantizer, codes_BL, 0), torch.zeros(3, 8, 4, 4))
    silent = torch.zeros(1, 8, 1, 1)
    for kept in (1, 2, 3):
        found = kept_map(quantizer, codes_BL, kept)
        finer = [
            quantizer.increment(quantizer.grid(scale_codes(quantizer.schedule, codes_BL, s), p), p)
            for s, p in enumerate(quantizer.schedule.patch_nums)
            if s >= kept
        ]
        whole = quantizer.decode(codes_BL)
        torch.testing.assert_close(found + sum(finer, silent), whole, atol=1e-5, rtol=1e-5)
        other = codes_BL.clone()  # a finer code is no part of the state
        other[:, quantizer.schedule.spans[kept][0] :] = 5
        assert torch.equal(kept_map(quantizer, other, kept), found)


def test_the_map_seen_is_the_transformers_input(make_pipeline: MakePipeline) -> None:
    model = make_pipeline().transformer
    codes_BL = _codes(model.schedule)
    tokens_BlC = model.quantizer.teacher_input(codes_BL)
    for kept in (1, 2, 3):
        begin, end = model.schedule.spans[kept]
        seen = seen_map(model.quantizer, codes_BL, kept)
        assert seen.shape == (3, 8, kept + 1, kept + 1)
        assert torch.equal(seen.flatten(2).transpose(1, 2), tokens_BlC[:, begin - 1 : end - 1])


def _different(maps: Tensor) -> int:
    return len({row.tobytes() for row in maps.numpy()})


def test_a_map_stands_for_its_codes_alone_where_no_two_meet() -> None:
    """Hence the chain of maps and the chain of codes carry the same, unless codes collide."""
    quantizer = _tiny("markov").quantizer
    codes_BL = _every_sequence(14)
    for kept, states in ((1, 2), (2, 32), (3, 16384)):
        assert _different(kept_map(quantizer, codes_BL, kept)) == states
    assert _different(seen_map(quantizer, codes_BL, 2)) == 32  # even averaged, as it is fed


@pytest.mark.parametrize("mask", MASKS)
def test_the_model_is_a_distribution_over_codes(mask: Mask) -> None:
    p_B = (-_table(mask)).exp()
    assert float(p_B.sum()) == pytest.approx(1, abs=1e-9)
    assert float(p_B.max()) > 20 / 16384  # far from uniform, or the test would show little


def _kernels(model: ScaleTransformer) -> list[Tensor]:
    """p(r_n | x_{n-1}) as tables, code by code: rows are prefixes, columns a scale's codes.

    Each table comes from its own pass, in which the finer codes are noise.
    """
    tables = []
    for begin, end in model.schedule.spans:
        prefixes = _every_sequence(begin) if begin else torch.zeros(1, 0, dtype=torch.int64)
        codes_BL = torch.randint(2, (len(prefixes), 14))
        codes_BL[:, :begin] = prefixes
        logits = model(torch.full((len(prefixes),), LABEL), codes_BL)[:, begin:end].double()
        p_BlV = logits.exp() / logits.exp().sum(2, keepdim=True)
        choices = _every_sequence(end - begin)
        chosen = [p_BlV[:, i, choices[:, i]] for i in range(end - begin)]
        tables.append(torch.stack(chosen).prod(0))
    return tables


@pytest.mark.parametrize("mask", MASKS)
def test_the_elbo_is_its_definition_and_tight(mask: Mask) -> None:
    """E_q[log p(x_0..x_S) - log q(x_0..x_{S-1} | x_S)] over all 2 * 32 trajectories to x_S."""
    kernels = _kernels(_tiny(mask))
    schedule = ScaleSchedule(SIDES)
    rows = torch.randperm(16384)[:40]
    every = _every_sequence(14)
    states = _every_sequence(1), _every_sequence(5)
    for row in rows.tolist():
        x3 = every[row]
        truth = kept_codes(schedule, x3[None], 1)[0], kept_codes(schedule, x3[None], 2)[0]
        elbo, evidence = 0.0, 0.0
        for i, x1 in enumerate(states[0]):
            for j, x2 in enumerate(states[1]):
                # A reverse step keeps what is there and appends one scale.
                p = float(kernels[0][0, i])
                p *= float(kernels[1][i, j % 16]) if torch.equal(x2[:1], x1) else 0.0
                p *= float(kernels[2][j, row % 512]) if torch.equal(x3[:5], x2) else 0.0
                evidence += p
                q = float(torch.equal(x1, truth[0]) and torch.equal(x2, truth[1]))
                if q > 0:
                    elbo += q * (math.log(p) - math.log(q))
        assert -float(_table(mask)[row]) == pytest.approx(elbo, abs=1e-5)
        assert math.log(evidence) == pytest.approx(elbo, abs=1e-12)


def test_the_bound_is_the_training_loss(make_pipeline: MakePipeline) -> None:
    """Summed over codes; with torch's cross-entropy and with the trainer's per-scale means."""
    for mask in MASKS:
        model = make_pipeline(mask).transformer
        codes_BL, labels_B = _codes(model.schedule), torch.tensor([0, 3, model.null_class])
        found = likelihood(model, labels_B, codes_BL)
        logits_BLV = model(labels_B, codes_BL)
        loss = F.cross_entropy(logits_BLV.transpose(1, 2), codes_BL)  # the mean over B and L
        assert float(-found.elbo_B.mean()) == pytest.approx(30 * float(loss), rel=1e-6)
        assert float(found.bits_per_token_B.mean()) == pytest.approx(
            float(loss) / math.log(2), rel=1e-6
        )
        torch.testing.assert_close(found.bits_per_image_B, found.bits_per_token_B * 30)
        torch.testing.assert_close(found.nll_BS.sum(1), -found.elbo_B)
        _, means = nll_per_scale(model, logits_BLV, codes_BL)
        torch.testing.assert_close(
            found.nll_per_code_BS.mean(0), torch.stack(list(means.values())).double()
        )


def test_a_uniform_model_costs_log2_v_bits_a_token(make_pipeline: MakePipeline) -> None:
    model = make_pipeline(fresh=True).transformer
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(0.7)
    found = likelihood(model, torch.tensor([0, 1, 2]), _codes(model.schedule))
    torch.testing.assert_close(found.bits_per_token_B, torch.full((3,), 5.0).double())
    torch.testing.assert_close(found.bits_per_image_B, torch.full((3,), 150.0).double())
    expected = math.log(32) * torch.tensor([1.0, 4, 9, 16]).double().expand(3, 4)
    torch.testing.assert_close(found.nll_BS, expected)


def test_one_bound_a_row_whatever_the_batch(make_pipeline: MakePipeline) -> None:
    model = make_pipeline("block_causal").transformer
    codes_BL, labels_B = _codes(model.schedule, batch=4), torch.tensor([0, 1, 2, 3])
    whole = likelihood(model, labels_B, codes_BL).elbo_B
    alone = [likelihood(model, labels_B[i : i + 1], codes_BL[i : i + 1]).elbo_B for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-4, rtol=1e-6)
    assert whole.std() > 1


def test_where_codes_collide_the_bound_on_the_map_is_loose() -> None:
    """Two equal rows of the codebook: the map's likelihood sums over the codes that give it."""
    model = _tiny("markov", (1, 2), 3)
    with torch.no_grad():
        model.quantizer.codebook.weight[2] = model.quantizer.codebook.weight[1]
    codes_BL = _every_sequence(5, 3)
    log_p_B = likelihood(model, torch.full((243,), LABEL), codes_BL).elbo_B
    preimages = defaultdict(list)
    for row, f_hat in enumerate(model.quantizer.decode(codes_BL)):
        preimages[f_hat.numpy().tobytes()].append(row)
    assert len(preimages) == 2**5
    total, gap = 0.0, 0.0
    for rows in preimages.values():
        of_map = torch.logsumexp(log_p_B[rows], 0)
        total += float(of_map.exp())
        gap += float((log_p_B[rows].exp() * (of_map - log_p_B[rows])).sum())
        assert len(rows) == 1 or bool((of_map > log_p_B[rows]).all())
    assert total == pytest.approx(1, abs=1e-9)
    assert gap > 0.1  # nats, on average: the entropy of the codes, given the map


def _reach(mask: Mask, schedule: ScaleSchedule, depth: int) -> Tensor:
    """Blocks that ``depth`` layers of the mask can carry to each block."""
    mask_LL = build_mask(mask, schedule)
    sees_SS = torch.tensor(
        [[bool(mask_LL[a:b, c:d].any()) for c, d in schedule.spans] for a, b in schedule.spans]
    )
    reach_SS = torch.linalg.matrix_power(sees_SS.double(), depth) > 0
    reach_SS[:, 0] = False  # the start token holds no codes
    return reach_SS


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("mask", MASKS)
def test_a_scale_depends_on_the_input_blocks_that_its_mask_reaches(
    make_pipeline: MakePipeline, mask: Mask, depth: int
) -> None:
    model = make_pipeline(mask, depth=depth).transformer
    labels_B, codes_BL = torch.tensor([0, 1, 2]), _codes(model.schedule)
    found = input_blocks_that_matter(model, labels_B, codes_BL)
    assert torch.equal(found, _reach(mask, model.schedule, depth))


def test_markov_alone_depends_on_one_block(make_pipeline: MakePipeline) -> None:
    """The Markov property, to the bit, at any depth; ``previous`` leaks through the layers."""
    own = torch.diag(torch.tensor([False, True, True, True]))
    found = {}
    for mask in MASKS:
        model = make_pipeline(mask).transformer
        found[mask] = input_blocks_that_matter(
            model, torch.tensor([0, 1]), _codes(model.schedule)[:2]
        )
    assert {mask for mask in MASKS if torch.equal(found[mask], own)} == set(MARKOV)
    assert "markov" in MARKOV
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    causal[:, 0] = False
    assert torch.equal(found["block_causal"], causal)
    assert torch.equal(found["previous"], causal)  # 3 layers reach 3 scales back
    model = make_pipeline("previous", depth=1).transformer
    one_layer = input_blocks_that_matter(model, torch.tensor([0, 1]), _codes(model.schedule)[:2])
    assert not one_layer[3, 1]
    assert one_layer[3, 2]


def _lost(model: ScaleTransformer, state_32: Tensor) -> float:
    """Nats by which the best p(r_3 | state) falls short of p(r_3 | r_1, r_2).

    ``state_32`` numbers the state of each prefix (r_1, r_2): two of one number share a state. All
    prefixes are equally frequent.
    """
    p = _kernels(model)[2]  # [32, 512]
    of_state = torch.zeros_like(p).index_add_(0, state_32, p)
    given_state = (of_state / of_state.sum(1, keepdim=True))[state_32]
    return float((p * (p / given_state).log()).sum(1).mean())


def _maps_state(model: ScaleTransformer) -> Tensor:
    """Each prefix's map f_hat_2, numbered; maps that differ by rounding alone are one."""
    prefixes = F.pad(_every_sequence(5), (0, 9))
    maps = kept_map(model.quantizer, prefixes, 2).flatten(1).double()
    return (torch.cdist(maps, maps) < 1e-4).int().argmax(1)


def _with_meeting_maps(mask: Mask) -> ScaleTransformer:
    """The prefixes (a, bbbb) and (b, aaaa) build one map, (a + b) / 2."""
    model = ScaleTransformer(_tiny(mask).config).eval().requires_grad_(False)
    model.load_state_dict(_tiny(mask).state_dict())
    for conv in model.quantizer.phi.convs:
        conv.weight.zero_()
        conv.bias.zero_()
    model.quantizer.codebook.weight.copy_(torch.tensor([[1.0, -2, 3, 0], [-1.0, 1, 2, 4]]))
    return model


@pytest.mark.parametrize("mask", MASKS)
def test_maps_are_a_sufficient_state_by_construction_for_markov_alone(mask: Mask) -> None:
    """What the bound of a chain over maps f_hat_n, or over one scale's codes, falls short by.

    Nothing for any mask while no two maps meet, since a map then tells its codes. Where two meet,
    nothing for markov and something for the others. Over one scale's codes, something for all.
    """
    apart, meeting = _tiny(mask), _with_meeting_maps(mask)
    assert len(_maps_state(apart).unique()) == 32
    assert len(_maps_state(meeting).unique()) == 31
    assert abs(_lost(apart, _maps_state(apart))) < 1e-9
    lost = _lost(meeting, _maps_state(meeting))
    assert lost < 1e-9 if mask in MARKOV else lost > 1e-3
    assert _lost(apart, torch.arange(32) % 16) > 0.05  # I(r_3; r_1 | r_2)


def test_no_mask_is_a_chain_of_one_scales_codes(make_pipeline: MakePipeline) -> None:
    """Equal codes of scale 2, other codes of scale 1: scale 3 changes, under markov as well."""
    for mask in MASKS:
        model = make_pipeline(mask).transformer
        codes_BL = _codes(model.schedule, batch=1).repeat(2, 1)
        codes_BL[1, 0] = (codes_BL[0, 0] + 9) % 32
        assert torch.equal(*scale_codes(model.schedule, codes_BL, 1))
        nll_BS = likelihood(model, torch.zeros(2, dtype=torch.int64), codes_BL).nll_BS
        assert abs(float(nll_BS[0, 2] - nll_BS[1, 2])) > 0.1


def test_snr_is_the_residuals_and_the_reconstructions(make_pipeline: MakePipeline) -> None:
    tokenizer = make_pipeline().tokenizer
    images = torch.rand(3, 3, 8, 8) * 1.4 - 0.7
    found = snr_per_scale(tokenizer, images)
    f = tokenizer.latent(images)
    quantized = tokenizer.quantizer(f)
    loss_S = quantized.loss_S.double() / 1.25  # of each scale, the batch's mean squared error
    error_BS = f.double().square().flatten(1).sum(1)[:, None] / 10 ** (found.latent_db_BS / 10)
    torch.testing.assert_close(error_BS.mean(0) / f[0].numel(), loss_S, atol=1e-8, rtol=1e-5)
    left_B = quantized.f_rest.double().square().flatten(1).sum(1)
    torch.testing.assert_close(error_BS[:, -1], left_B, atol=1e-8, rtol=1e-5)
    whole = tokenizer.decode(tokenizer.encode(images)).double()
    noise_B = (whole - images).square().flatten(1).mean(1)
    torch.testing.assert_close(
        found.pixel_db_BS[:, -1],
        10 * (images.double().square().flatten(1).mean(1) / noise_B).log10(),
    )
    torch.testing.assert_close(found.psnr_db_BS[:, -1], 10 * (4 / noise_B).log10())
    first = tokenizer.decode_latent(kept_map(tokenizer.quantizer, quantized.codes_BL, 1)).double()
    torch.testing.assert_close(
        found.psnr_db_BS[:, 0], 10 * (4 / (first - images).square().flatten(1).mean(1)).log10()
    )
    assert found.latent_db_BS.shape == (3, 4)
    assert found.latent_db_BS.dtype == torch.float64


def test_a_state_without_error_has_an_infinite_ratio(make_pipeline: MakePipeline) -> None:
    tokenizer = make_pipeline(fresh=True).tokenizer
    with torch.no_grad():
        for parameter in (*tokenizer.decoder.parameters(), *tokenizer.post_quant_conv.parameters()):
            parameter.zero_()
    found = snr_per_scale(tokenizer, torch.zeros(1, 3, 8, 8))
    assert found.psnr_db_BS.isposinf().all()
    found = snr_per_scale(tokenizer, torch.full((1, 3, 8, 8), -0.5))
    torch.testing.assert_close(found.pixel_db_BS, torch.zeros(1, 4).double())
    torch.testing.assert_close(found.psnr_db_BS, torch.full((1, 4), 20 * math.log10(4)).double())


def test_pruning_changes_the_codes_after_the_first_scale_dropped(
    make_pipeline: MakePipeline,
) -> None:
    """Up to there encoding is the same; then it meets another residual."""
    tokenizer = make_pipeline().tokenizer
    f = tokenizer.latent(torch.rand(64, 3, 8, 8) * 2 - 1)
    whole = tokenizer.quantizer
    pruned = pruned_quantizer(whole, (1, 3, 4))
    assert pruned.schedule == ScaleSchedule((1, 3, 4), (1, 2, 3, 4))
    shares = changed_codes(whole.schedule, whole.encode(f), pruned.schedule, pruned.encode(f))
    assert list(shares) == [1, 3, 4]
    assert shares[1] == 0
    assert shares[3] > 0.1
    assert shares[4] > 0.1


def test_encoding_a_states_map_does_not_give_the_state_back(make_pipeline: MakePipeline) -> None:
    tokenizer = make_pipeline().tokenizer
    quantizer, schedule = tokenizer.quantizer, tokenizer.schedule
    codes_BL = quantizer.encode(tokenizer.latent(torch.rand(64, 3, 8, 8) * 2 - 1))
    again = quantizer.encode(kept_map(quantizer, codes_BL, 3))
    shares = changed_codes(schedule, codes_BL, schedule, again)
    assert max(shares[side] for side in (2, 3)) > 0.1


def test_changed_codes_counts_shares(make_pipeline: MakePipeline) -> None:
    schedule = ScaleSchedule((1, 2, 3))
    codes_BL = torch.zeros(2, 14, dtype=torch.int64)
    other = codes_BL.clone()
    other[0, 0] = 1  # of 2 codes
    other[1, 1:3] = 1  # of 8
    assert changed_codes(schedule, codes_BL, schedule, other) == {1: 0.5, 2: 0.25, 3: 0.0}


def test_the_benchmark_prints_the_functions_numbers(
    make_pipeline: MakePipeline,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = make_pipeline().tokenizer
    save_tokenizer(tokenizer, tmp_path / "run" / "model")
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    save_tensors(tmp_path / "images.safetensors", {"images": images})
    arguments = [str(tmp_path / "run"), str(tmp_path / "images.safetensors"), "--n", "4"]
    monkeypatch.setattr(sys, "argv", ["snr.py", *arguments, "--prune", "1,3,4"])
    runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "snr.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 images"
    found = json.loads(lines[-1])
    expected = snr_per_scale(tokenizer, images[:4].float() / 127.5 - 1)
    rows = found["rows"]
    assert [row["scale"] for row in rows] == [1, 2, 3, 4]
    assert [row["pruned"] is None for row in rows] == [False, True, False, False]
    for name, db_BS in (
        ("latent_db", expected.latent_db_BS),
        ("pixel_db", expected.pixel_db_BS),
        ("psnr_db", expected.psnr_db_BS),
    ):
        assert [row[name][0] for row in rows] == pytest.approx(db_BS.mean(0).tolist(), rel=1e-5)
        error_S = db_BS.std(0) / 2
        assert [row[name][1] for row in rows] == pytest.approx(error_S.tolist(), rel=1e-4)


def test_wrong_input_is_refused(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline()
    model, tokenizer = pipeline.transformer, pipeline.tokenizer
    schedule, codes_BL = model.schedule, _codes(model.schedule)
    labels_B = torch.zeros(3, dtype=torch.int64)
    for message, call in (
        (r"integers \[B, 30\].*got .*\[3, 29\]", lambda: kept_codes(schedule, codes_BL[:, 1:], 1)),
        (r"integers .*float32", lambda: likelihood(model, labels_B, codes_BL.float())),
        (r"from 0 to 4 here, got 5", lambda: kept_codes(schedule, codes_BL, 5)),
        (r"from 0 to 4 here, got -1", lambda: kept_map(model.quantizer, codes_BL, -1)),
        (r"from 1 to 3 here, got 0", lambda: seen_map(model.quantizer, codes_BL, 0)),
        (r"from 1 to 3 here, got 4", lambda: seen_map(model.quantizer, codes_BL, 4)),
        (r"got .*\[30\]", lambda: kept_maps(model.quantizer, codes_BL[0])),
        (r"from 0 to 3, got -1", lambda: scale_codes(schedule, codes_BL, -1)),
        (r"codes must lie in \[0, 32\)", lambda: likelihood(model, labels_B, codes_BL + 32)),
        (r"labels must be \[3\].*got \[2\]", lambda: likelihood(model, labels_B[:2], codes_BL)),
        (r"classes must lie in", lambda: likelihood(model, labels_B + 6, codes_BL)),
        (r"labels must be", lambda: input_blocks_that_matter(model, labels_B[:2], codes_BL)),
        (r"images must be", lambda: snr_per_scale(tokenizer, torch.zeros(1, 3, 4, 4))),
        (r"are no scales", lambda: pruned_quantizer(tokenizer.quantizer, (1, 5))),
        (r"must end at", lambda: pruned_quantizer(tokenizer.quantizer, (1, 2))),
        (r"3 images and of 2", lambda: changed_codes(schedule, codes_BL, schedule, codes_BL[:2])),
    ):
        with pytest.raises(UserError, match=message):
            call()

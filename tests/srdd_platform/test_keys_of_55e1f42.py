"""Codes, keys and hashes are those that commit 55e1f42 wrote down for its files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_digits import tiny_preset
from written_by_55e1f42 import EXPECTED, MASKS, unpack

from srdd import SamplerConfig, load_pipeline, presets, sample
from srdd_platform.data.code_places import codes_dir
from srdd_platform.data.codes import load_codes, load_views
from srdd_platform.evaluation.protocol import (
    FIRST_PROTOCOL,
    EvaluationConfig,
    row_key,
    weights_digest,
)
from srdd_platform.train.job import make_job
from srdd_platform.train.options import Options, TransformerOptions


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory ``runs/digits`` of that commit, for tests that only read it."""
    return unpack(tmp_path_factory.mktemp("written"))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", EXPECTED["settings"])
def test_a_pipeline_draws_the_codes_that_it_drew(written: Path, mask: str, name: str) -> None:
    config = SamplerConfig(**EXPECTED["settings"][name])
    labels = torch.tensor(EXPECTED["labels"])
    found = sample(load_pipeline(written / mask / "model"), labels, config, EXPECTED["seeds"])
    assert found.codes_BL.tolist() == EXPECTED["codes"][f"{mask}, {name}"]


@pytest.mark.parametrize("mask", MASKS)
def test_a_row_has_the_key_that_it_had(written: Path, mask: str) -> None:
    digest = weights_digest(written / mask / "model")
    assert digest == EXPECTED["weights_digests"][mask]
    evaluation = EvaluationConfig(
        data="", extractor="", weights="", num=60, seed=2, protocol=FIRST_PROTOCOL
    )
    for name, values in EXPECTED["settings"].items():
        found = row_key(digest, SamplerConfig(**values), evaluation, "classifier")
        assert found == EXPECTED["row_keys"][f"{mask}, {name}"], name


def config_hash(written: Path, preset: presets.Preset, kind: str, values: dict[str, Any]) -> str:
    data, out = written / "data", written / "out"
    if kind not in MASKS:
        return make_job(kind, preset, data, out, Options(**values)).config_hash
    if "init_from" in values:
        values = {**values, "init_from": written / "markov" / "model"}
    return make_job(
        "transformer", preset, data, out, TransformerOptions(**values),
        tokenizer=written / "tokenizer", mask=kind,
    ).config_hash  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED["options"])
def test_a_training_s_settings_have_the_hash_that_they_had(written: Path, name: str) -> None:
    kind, values = EXPECTED["options"][name]
    found = config_hash(written, tiny_preset(), kind, values)
    assert found == EXPECTED["config_hashes"][name]


@pytest.mark.parametrize("name", EXPECTED["preset_hashes"])
def test_a_preset_s_trainings_have_the_hashes_that_they_had(written: Path, name: str) -> None:
    preset = replace(presets.get_preset(name), tokenizer=tiny_preset().tokenizer)
    for kind, expected in EXPECTED["preset_hashes"][name].items():
        assert config_hash(written, preset, kind, {}) == expected


def test_codes_are_found_where_they_were(written: Path) -> None:
    data, tokenizer = written / "data", written / "tokenizer"
    one, two = codes_dir(data, tokenizer), codes_dir(data, tokenizer, views=2, flip=True)
    assert {"1 view": one.name, "2 views": two.name} == EXPECTED["codes_keys"]
    assert [len(load_codes(one, split)[0]) for split in ("train", "val")] == [240, 60]
    assert load_views(two, "train")[0].shape == (240, 2, 21)

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srdd.train.config import OptimConfig
from srdd.var.config import TransformerConfig
from srdd_platform.cli.command_errors import guarded
from srdd_platform.core.files import read_json
from srdd_platform.core.out_of_memory import is_out_of_memory, killed_for_memory
from srdd_platform.core.runs import open_run
from srdd_platform.train.job import Job
from srdd_platform.train.kind import Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.out_of_memory import advice

MODEL = TransformerConfig(patch_nums=(1, 2))
OPTIM = OptimConfig(steps=9, batch_size=33, lr=0.1)


def job(kind: str = "transformer", **optim: Any) -> Job:
    settings = Settings(model=MODEL, optim=replace(OPTIM, **optim))
    return Job(kind=KINDS[kind], run="run", data="data", settings=settings)


def too_much() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def test_torchs_and_pythons_own_errors_are_known() -> None:
    with pytest.raises(RuntimeError) as by_torch:
        too_much()
    with pytest.raises(MemoryError) as by_python:
        bytearray(1 << 60)
    assert is_out_of_memory(by_torch.value)
    assert is_out_of_memory(by_python.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_worker_that_ray_ends_for_memory_is_told_from_one_that_was_killed() -> None:
    monitor = "Task was killed due to the node running low on memory."
    kernel = "Some common causes include: (1) the process was killed by the OOM killer"
    assert killed_for_memory(RuntimeError(monitor))
    assert not killed_for_memory(RuntimeError(kernel))


@pytest.mark.parametrize(
    ("given", "world", "said"),
    [
        (job(), 1, r"33 images at once .* --accumulate 2 \(17 at once.*--batch-size 16 or less"),
        (job(accumulate=3), 2, r"6 images at once .* --accumulate 6 \(3 at once"),
        (job(batch_size=2), 2, r"1 image at once .* --recompute"),
        (job(batch_size=2, recompute=True), 2, r"1 image at once .* --parallel fsdp"),
        (job("tokenizer", batch_size=1), 1, r"1 image at once .* smaller model"),
    ],
)
def test_the_advice_names_what_was_held_at_once_and_what_to_try(
    given: Job, world: int, said: str
) -> None:
    text = advice(given, world)
    assert "\n" not in text
    assert text.endswith("the last checkpoint is kept")
    assert re.search(said, text)


def test_settings_of_memory_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    first, other = job(), job(accumulate=4, recompute=True)
    assert first.config_hash == other.config_hash != job(lr=0.2).config_hash
    for settings in (first.settings.to_json(), other.settings.to_json()):
        with open_run(tmp_path / "run", "train transformer", settings, {}):
            pass
        assert read_json(tmp_path / "run" / "config.json")["settings"] == settings


def test_other_commands_say_it_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        guarded(too_much)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("srdd: out of memory: ask for less at once")
    with pytest.raises(RuntimeError, match="a bug"):
        guarded(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))

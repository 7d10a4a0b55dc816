import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import codebook_remedies
from benchmarks.codebook_remedies import ARMS


def test_every_arm_is_judged_on_images_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(40, 3, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.zeros(40))
    train, held_out = codebook_remedies.load(tmp_path / "images.npz")
    assert torch.equal(torch.cat((train, held_out)), torch.from_numpy(images))
    assert len(held_out) == 4
    out = tmp_path / "rows.json"
    settings = (
        "--steps 2 --batch-size 4 --ch 8 --ch-mult 1 1 1 --patch-nums 1 2 4 --vocab-size 16 "
        "--restart-every 1"
    )
    rows = codebook_remedies.main(
        [str(tmp_path / "images.npz"), *settings.split(), "--out", str(out)]
    )
    assert [row.arm for row in rows] == [arm.name for arm in ARMS]
    for row in rows:
        assert 0 < row.psnr < 30
        assert list(row.usage) == ["1x1", "2x2", "4x4"]
        assert all(1 / 16 <= value <= 1 for value in row.usage.values())
        assert all(1 <= value <= 16 for value in row.perplexity.values())
    assert len({row.psnr for row in rows}) == len(ARMS)
    found = json.loads(out.read_text())
    assert found["settings"]["held_out"] == 4
    assert len(found["rows"]) == len(ARMS)
    assert "| none |" in capsys.readouterr().out

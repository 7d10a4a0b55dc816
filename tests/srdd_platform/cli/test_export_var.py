"""VAR's own code loads what ``srdd export`` writes, strictly, and computes the same.

``SRDD_VAR_REPO`` names a checkout of github.com/FoundationVision/VAR; without one it is skipped.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srdd import Pipeline, SamplerConfig, sample
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.init import init_weights
from srdd.var.masks import Mask
from srdd.var.pipeline import save_pipeline
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd_platform.cli import main as cli

OFFICIAL = """
import sys
import torch
from safetensors.torch import load_file, save_file

def read(path):
    return load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)

vae_path, var_path, inputs, out, built = sys.argv[1:]
from models.var import VAR
from models.vqvae import VQVAE

for line in built.splitlines()[:2]:
    name = "vae" if line.startswith("VQVAE") else "var"
    exec(f"{name} = {line}")
vae.load_state_dict(read(vae_path), strict=True)
var.load_state_dict(read(var_path), strict=True)
vae.eval(), var.eval()
var.cond_drop_rate = 0.0
given = load_file(inputs)
with torch.no_grad():
    codes = vae.img_to_idxBl(given["images"])
    tokens = vae.quantize.idxBl_to_var_input(codes)
    found = {"codes": torch.cat(codes, 1), "logits": var(given["labels"], tokens)}
    labels = given["labels"]
    found["drawn"] = var.autoregressive_infer_cfg(len(labels), labels, cfg=2.0, top_k=1)
save_file({k: v.contiguous() for k, v in found.items()}, out)
"""


@pytest.fixture(scope="module")
def var_repo() -> Path:
    """A checkout of VAR."""
    path = Path(os.environ.get("SRDD_VAR_REPO", ""))
    if not (path / "models" / "var.py").is_file():
        pytest.skip("SRDD_VAR_REPO names no checkout of FoundationVision/VAR")
    return path.resolve()


@torch.no_grad()
def _build(mask: Mask, **settings: object) -> Pipeline:
    """A small model of the sizes that VAR's code can build, with every part at work."""
    torch.manual_seed(3)
    shared = {"patch_nums": settings.pop("sides", (1, 2, 3, 4)), "vocab_size": 64, "z_channels": 8}
    num_phi = settings.pop("num_phi", 4)
    vae = Tokenizer(TokenizerConfig(resolution=64, ch=32, num_phi=num_phi, **shared))
    config = TransformerConfig(
        mask=mask, num_classes=5, depth=3, width=48, num_phi=num_phi, **shared, **settings
    )
    model = ScaleTransformer(config)
    init_weights(model, gate=1.0, head=6.0)
    for name, parameter in model.named_parameters():
        if not name.startswith("quantizer."):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.class_emb.weight.normal_()
    vae.quantizer.codebook.weight.normal_()
    model.quantizer.load_state_dict(vae.quantizer.state_dict())
    return Pipeline(vae.eval(), model.eval(), SamplerConfig(), tuple("abcde"))


@pytest.mark.parametrize(
    ("mask", "suffix", "settings"),
    [
        ("block_causal", ".pth", {"num_heads": 4}),
        ("markov", ".safetensors", {"num_heads": 6, "shared_aln": True, "num_phi": 1}),
        ("block_causal", ".pth", {"num_heads": 4, "sides": (1, 2, 4), "num_phi": 3}),
        ("block_causal", ".pt", {"num_heads": 3, "attn_l2_norm": False, "mlp_ratio": 2.5}),
    ],
    ids=["var", "markov-shared-aln-one-phi", "a-phi-a-scale", "no-l2-norm"],
)
def test_var_loads_an_export_strictly_and_computes_the_same(
    var_repo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mask: Mask,
    suffix: str,
    settings: dict[str, object],
) -> None:
    pipeline = _build(mask, **settings)
    save_pipeline(pipeline, tmp_path / "model")
    vae, var = tmp_path / f"vae{suffix}", tmp_path / f"var{suffix}"
    command = ["export", "--model", tmp_path / "model", "--vae", vae, "--transformer", var]
    monkeypatch.setattr(sys, "argv", ["srdd", *map(str, command)])
    cli.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("V")]
    images, labels = torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([1, 4])
    save_file({"images": images, "labels": labels}, tmp_path / "in.safetensors")
    arguments = [vae, var, tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    run = subprocess.run(
        [sys.executable, "-c", OFFICIAL, *map(str, arguments), "\n".join(printed)],
        cwd=var_repo,
        env={**os.environ, "PYTHONPATH": str(var_repo), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = load_file(tmp_path / "out.safetensors")
    codes_BL = pipeline.tokenizer.encode(images)
    assert torch.equal(codes_BL, found["codes"])
    with torch.no_grad():
        logits_BLV = pipeline.transformer(labels, codes_BL)
    torch.testing.assert_close(logits_BLV, found["logits"], atol=1e-4, rtol=1e-4)
    assert found["logits"].std() > 0.5  # or any weights would do
    if mask == "block_causal":
        result = sample(pipeline, labels, SamplerConfig(cfg=2.0, top_k=1), [0, 1])
        torch.testing.assert_close(result.images, found["drawn"], atol=1e-4, rtol=0)

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srdd import Pipeline, SamplerConfig, load_pipeline, sample
from srdd.errors import UserError
from srdd.var.masks import MASKS, Mask
from srdd.var.pipeline import load_tokenizer, save_pipeline, save_tokenizer

MakePipeline = Callable[..., Pipeline]
LABELS = torch.arange(4)


@pytest.fixture
def saved(make_pipeline: MakePipeline, tmp_path: Path) -> Path:
    save_pipeline(make_pipeline(), tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.mark.parametrize("mask", MASKS)
def test_a_pipeline_comes_back_bit_for_bit(
    make_pipeline: MakePipeline, tmp_path: Path, mask: Mask
) -> None:
    base = make_pipeline(mask, shared_aln=mask == "previous")
    sampler = SamplerConfig(cfg=1.5, patch_nums=(1, 2, 4), refine_steps=1)
    pipeline = Pipeline(base.tokenizer, base.transformer, sampler, base.class_names)
    save_pipeline(pipeline, tmp_path / "a")
    loaded = load_pipeline(tmp_path / "a")
    assert loaded.sampler == sampler
    assert loaded.class_names == pipeline.class_names
    assert loaded.transformer.config == pipeline.transformer.config
    assert loaded.tokenizer.config == pipeline.tokenizer.config
    for own, other in (
        (pipeline.transformer, loaded.transformer),
        (pipeline.tokenizer, loaded.tokenizer),
    ):
        state = other.state_dict()
        assert own.state_dict().keys() == state.keys()
        assert all(torch.equal(t, state[name]) for name, t in own.state_dict().items())
        assert not other.training
        assert not any(p.requires_grad for p in other.parameters())
    first, second = (sample(p, LABELS, None, range(4)) for p in (pipeline, loaded))
    assert torch.equal(first.images, second.images)


def test_a_run_directory_stands_for_its_model(saved: Path, tmp_path: Path) -> None:
    saved.rename(tmp_path / "model")
    assert load_pipeline(str(tmp_path)).class_names[0] == "class 0"


def test_a_directory_holds_no_path_and_no_time(
    make_pipeline: MakePipeline, saved: Path, tmp_path: Path
) -> None:
    save_pipeline(make_pipeline(), tmp_path / "again")
    files = sorted(p.relative_to(saved) for p in saved.rglob("*") if p.is_file())
    assert [str(f) for f in files] == [
        "classes.json",
        "sampler.json",
        "tokenizer/config.json",
        "tokenizer/model.safetensors",
        "transformer/config.json",
        "transformer/model.safetensors",
    ]
    for file in files:
        content = (saved / file).read_bytes()
        assert content == (tmp_path / "again" / file).read_bytes()
        assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("shared", ["tokenizer", "transformer"])
def test_a_directory_of_another_kind_is_refused(saved: Path, shared: str) -> None:
    other = {"tokenizer": "transformer", "transformer": "tokenizer"}[shared]
    config = saved / shared / "config.json"
    config.write_text((saved / other / "config.json").read_text())
    with pytest.raises(UserError, match=f"holds a {other}, not a {shared}"):
        load_pipeline(saved)


def _edit_config(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _edit_weights(path: Path, **tensors: torch.Tensor | None) -> None:
    stored = {**load_file(path), **{name.replace("__", "."): t for name, t in tensors.items()}}
    save_file({name: t for name, t in stored.items() if t is not None}, path)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("transformer/model.safetensors", None, "model.safetensors does not exist"),
        ("tokenizer/model.safetensors", None, "model.safetensors does not exist"),
        ("transformer/model.safetensors", b"", "model.safetensors is empty"),
        (
            "transformer/model.safetensors",
            b"\x80\x04not at all",
            "is a Python pickle that torch.save",
        ),
        ("tokenizer/config.json", None, "is no tokenizer directory: it has no config.json"),
        ("tokenizer/config.json", b"{", "config.json is not valid JSON"),
        ("tokenizer/config.json", b"[]", "holds a different thing, not a tokenizer"),
        ("tokenizer/config.json", b"\xff\xfe", "config.json is not valid JSON"),
        ("sampler.json", None, "sampler.json does not exist: .* incomplete"),
        ("sampler.json", b"nope", "sampler.json is not valid JSON"),
        ("sampler.json", b"[]", "sampler.json"),
        ("sampler.json", b'{"cfgs": 1}', "sampler.json: unknown setting 'cfgs'"),
        ("classes.json", None, "classes.json does not exist: .* incomplete"),
        ("classes.json", b'["a"]', "1 class names for 5 classes"),
        ("classes.json", b'"abcde"', "classes.json"),
        ("classes.json", b"3", "classes.json"),
        ("classes.json", b"[1, 2, 3, 4, 5]", "classes.json"),
    ],
)
def test_a_damaged_pipeline_is_refused(
    saved: Path, file: str, content: bytes | None, said: str
) -> None:
    (saved / file).unlink()
    if content is not None:
        (saved / file).write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_pipeline(saved)


def test_class_names_that_another_program_wrote_are_read_in_their_one_form(saved: Path) -> None:
    """An editor adds a byte order mark; earlier versions wrote names as folders had them."""
    text = '["a\\r\\n", "cafe\u0301", "caf\\udce9", " b, c ", "\\ufeffd"]'
    (saved / "classes.json").write_text(text, encoding="utf-8-sig")
    loaded = load_pipeline(saved)
    assert loaded.class_names == ("a", "caf\u00e9", r"caf\xe9", "b, c", "d")
    assert loaded.labels("b, c,cafe\u0301,index:2") == [3, 1, 2]
    save_pipeline(loaded, saved)
    assert json.loads((saved / "classes.json").read_text()) == list(loaded.class_names)


def test_a_truncated_file_is_refused(saved: Path) -> None:
    path = saved / "transformer" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="a safetensors file that is damaged or cut short"):
        load_pipeline(saved)


def test_missing_and_unknown_weights_are_named(saved: Path) -> None:
    path = saved / "transformer" / "model.safetensors"
    _edit_weights(path, head__bias=None, attn_bias_for_masking=torch.zeros(1))
    said = "does not fit its config.json: .*missing head.bias; unknown attn_bias_for_masking"
    with pytest.raises(UserError, match=said):
        load_pipeline(saved)


def test_a_wrong_shape_is_named(saved: Path) -> None:
    path = saved / "tokenizer" / "model.safetensors"
    _edit_weights(path, quantizer__codebook__weight=torch.zeros(31, 8))
    said = r"quantizer.codebook.weight \[31, 8\] \(needs \[32, 8\]\)"
    with pytest.raises(UserError, match=said):
        load_pipeline(saved)


def test_a_wrong_field_is_named(saved: Path) -> None:
    _edit_config(saved / "transformer" / "config.json", mask="causal")
    with pytest.raises(UserError, match=r"transformer.config\.json: mask must be"):
        load_pipeline(saved)


@pytest.mark.parametrize("name", ["quantizer.codebook.weight", "quantizer.phi.convs.2.bias"])
def test_copies_of_the_codebook_that_differ_are_refused(saved: Path, name: str) -> None:
    path = saved / "transformer" / "model.safetensors"
    tensor = load_file(path)[name]
    tensor.view(-1)[3] += 1e-3
    _edit_weights(path, **{name.replace(".", "__"): tensor})
    with pytest.raises(UserError, match="another tokenizer: codebook or phi differ"):
        load_pipeline(saved)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing does not exist"):
        load_pipeline(tmp_path / "missing")
    with pytest.raises(UserError, match="is no pipeline directory: it has no transformer"):
        load_pipeline(tmp_path)


def test_a_tokenizer_comes_back_alone(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    tokenizer = make_pipeline().tokenizer
    save_tokenizer(tokenizer, tmp_path / "t")
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    loaded = load_tokenizer(tmp_path / "t")
    codes_BL = loaded.encode(images)
    assert torch.equal(codes_BL, tokenizer.encode(images))
    assert torch.equal(loaded.decode(codes_BL), tokenizer.decode(codes_BL))


def test_images_and_codes_of_a_wrong_shape_are_refused(make_pipeline: MakePipeline) -> None:
    tokenizer = make_pipeline().tokenizer
    with pytest.raises(UserError, match=r"images must be \[B, 3, 8, 8\].*got \[1, 3, 8, 9\]"):
        tokenizer.encode(torch.zeros(1, 3, 8, 9))
    with pytest.raises(UserError, match=r"codes must be \[B, 30\].*got \[1, 29\]"):
        tokenizer.decode(torch.zeros(1, 29, dtype=torch.int64))
    for code in (-1, 32):
        with pytest.raises(UserError, match=r"codes must lie in \[0, 32\)"):
            tokenizer.decode(torch.full((1, 30), code))

"""Code shards: where they lie, what they hold, what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srdd.errors import UserError
from srdd.pipeline import load_tokenizer, save_tokenizer
from srdd.train.tokenizer import to_float
from srdd_platform.codes import FORMAT, codes_dir, encode, encode_shard, load_codes
from srdd_platform.data import Manifest, ShardDataset, prepare, stream
from srdd_platform.files import write_json


@pytest.fixture(scope="module")
def tokenizer_run(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with its finished tokenizer."""
    run = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(load_tokenizer(tiny_pipeline / "tokenizer"), run / "model")
    write_json(run / "config.json", {"kind": "train tokenizer"})
    return run


@pytest.fixture(scope="module")
def codes(
    digits_shards: Path, tokenizer_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The code shards of the val split, with a manifest as the platform writes it."""
    out = tmp_path_factory.mktemp("codes")
    split = Manifest.load(digits_shards).splits["val"]
    names = []
    for shard in split.shards:
        names.append(shard.name.replace(".tar", ".safetensors"))
        made = encode_shard(digits_shards, tokenizer_run, "val", shard.name, out / names[-1])
        assert made == shard.num
    manifest = {"format": FORMAT, "splits": {"val": {"num": split.num, "shards": names}}}
    write_json(out / "manifest.json", manifest)
    return out


def test_codes_are_the_tokenizer_s(codes: Path, digits_shards: Path, tokenizer_run: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_run / "model")
    for shard in Manifest.load(digits_shards).splits["val"].shards:
        found = load_file(codes / shard.name.replace(".tar", ".safetensors"))
        assert {name: tensor.dtype for name, tensor in found.items()} == {
            "codes": torch.uint16, "labels": torch.int32, "keys": torch.uint8,
        }  # fmt: skip
        keys, images, labels = zip(*stream(digits_shards, "val", [shard.name]), strict=True)
        expected = tokenizer.encode(to_float(torch.stack(images)))
        assert torch.equal(found["codes"].long(), expected)
        assert found["codes"].shape == (shard.num, 30)
        assert found["labels"].tolist() == list(labels)
        assert [bytes(key.tolist()).rstrip(b"\0").decode() for key in found["keys"]] == list(keys)


def test_a_split_is_loaded_in_the_order_of_its_images(codes: Path, digits_shards: Path) -> None:
    """Row i of the codes is sample i of the shards: the trainer's index means the same."""
    dataset = ShardDataset(digits_shards, "val")
    codes_nL, labels_n = load_codes(codes, "val")
    assert codes_nL.dtype == torch.uint16
    assert labels_n.dtype == torch.int64
    assert codes_nL.shape == (360, 30)
    assert labels_n.tolist() == dataset.labels.tolist()
    assert len(Manifest.load(digits_shards).splits["val"].shards) > 1
    assert len(codes_nL.long().unique()) > 1


def test_the_directory_s_name_changes_with_data_and_tokenizer(
    digits_shards: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    here = codes_dir(digits_shards, tokenizer_run)
    assert here.parent == tokenizer_run / "codes"
    assert codes_dir(digits_shards, tokenizer_run) == here
    other = load_tokenizer(tokenizer_run / "model")
    with torch.no_grad():
        other.decoder.conv_out.bias[0] += 1e-3
    save_tokenizer(other, tmp_path / "model")
    write_json(tmp_path / "config.json", {"kind": "train tokenizer"})
    assert codes_dir(digits_shards, tmp_path).name != here.name
    prepare(source="digits", resolution=16, out=tmp_path / "data", seed=1, workers=1)
    assert codes_dir(tmp_path / "data", tokenizer_run).name != here.name


def test_an_unfinished_tokenizer_is_refused(digits_shards: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"kind": "train tokenizer"})
    with pytest.raises(UserError, match="holds no finished tokenizer"):
        codes_dir(digits_shards, tmp_path)


def test_data_that_is_none_is_refused(tokenizer_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no manifest\.json.*srdd data prepare"):
        codes_dir(tmp_path, tokenizer_run)


def test_images_of_another_size_are_refused_before_any_work(
    tokenizer_run: Path, tmp_path: Path
) -> None:
    prepare(source="digits", resolution=8, out=tmp_path / "data", workers=1)
    with pytest.raises(UserError, match=r"takes 16 px images, .* 8 px"):
        encode(tmp_path / "data", tokenizer_run)


def test_finished_codes_are_found_without_ray(
    digits_shards: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    save_tokenizer(load_tokenizer(tokenizer_run / "model"), tmp_path / "model")
    write_json(tmp_path / "config.json", {"kind": "train tokenizer"})
    directory = codes_dir(digits_shards, tmp_path)
    write_json(directory / "manifest.json", {"format": FORMAT, "splits": {}})
    assert encode(digits_shards, tmp_path) == directory


def test_a_shard_written_again_has_the_same_bytes(
    codes: Path, digits_shards: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    encode_shard(
        digits_shards, tokenizer_run, "val", "val-000001.tar", tmp_path / "again.safetensors"
    )
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (codes / "val-000001.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.safetensors"]


def copy(codes: Path, target: Path) -> Path:
    for path in codes.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_missing_codes_are_refused(codes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        load_codes(tmp_path / "nowhere", "val")
    with pytest.raises(UserError, match="holds no train codes"):
        load_codes(codes, "train")
    write_json(tmp_path / "manifest.json", {"format": "srdd-shards-1"})
    with pytest.raises(UserError, match="holds no val codes"):
        load_codes(tmp_path, "val")


def test_short_codes_are_refused(codes: Path, tmp_path: Path) -> None:
    copy(codes, tmp_path)
    shard = tmp_path / "val-000000.safetensors"
    short = {name: tensor[:-1].clone() for name, tensor in load_file(shard).items()}
    save_file(short, shard)
    with pytest.raises(UserError, match="holds 359 of 360 codes"):
        load_codes(tmp_path, "val")


def test_a_missing_shard_is_refused(codes: Path, tmp_path: Path) -> None:
    copy(codes, tmp_path)
    (tmp_path / "val-000001.safetensors").unlink()
    with pytest.raises(UserError, match=r"val-000001\.safetensors"):
        load_codes(tmp_path, "val")


def test_a_damaged_shard_is_refused(codes: Path, tmp_path: Path) -> None:
    copy(codes, tmp_path)
    shard = tmp_path / "val-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(UserError, match=r"val-000001\.safetensors"):
        load_codes(tmp_path, "val")

"""Code shards: where they lie, what they hold, what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srdd.errors import UserError
from srdd.images import to_float
from srdd.var.pipeline import load_tokenizer, save_tokenizer
from srdd_platform.core.files import write_json
from srdd_platform.data.augment import Augmentation
from srdd_platform.data.code_places import codes_dir
from srdd_platform.data.codes import (
    FORMAT,
    Extraction,
    choose_views,
    encode,
    encode_shard,
    load_codes,
    load_views,
)
from srdd_platform.data.dataset import ShardDataset, load_images
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.shards import prepare
from srdd_platform.data.store import open_store


@pytest.fixture(scope="module")
def tokenizer_run(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with its finished tokenizer."""
    run = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(load_tokenizer(tiny_pipeline / "tokenizer"), run / "model")
    write_json(run / "config.json", {"kind": "train tokenizer"})
    return run


def extraction(data: Path, tokenizer: Path, **options: object) -> Extraction:
    return Extraction(data=str(data), tokenizer=str(tokenizer), **options)


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
        made = encode_shard(
            extraction(digits_shards, tokenizer_run), "val", shard.name, out / names[-1]
        )
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
        dataset = ShardDataset(digits_shards, "val", {}, shards=[shard.name])
        images, labels = load_images(dataset)
        keys = [dataset.key(i) for i in range(len(dataset))]
        expected = tokenizer.encode(to_float(images))
        assert torch.equal(found["codes"].long(), expected)
        assert found["codes"].shape == (shard.num, 30)
        assert found["labels"].tolist() == labels.tolist()
        assert [bytes(key.tolist()).decode() for key in found["keys"]] == keys


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
    again = extraction(digits_shards, tokenizer_run)
    encode_shard(again, "val", "val-000001.tar", tmp_path / "again.safetensors")
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


@pytest.fixture(scope="module")
def kept_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits at 16 px with room for crops."""
    out = tmp_path_factory.mktemp("kept") / "digits"
    prepare(source="digits", resolution=16, out=out, keep=1.5, shard_size_images=300, workers=1)
    return out


def test_views_are_random_crops_by_view_and_sample(
    kept_shards: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    """View v of sample i is the code of crop (v, i), in a later shard as in the first."""
    out = tmp_path / "out.safetensors"
    name = "train-000004.tar"
    varied = extraction(kept_shards, tokenizer_run, views=3, flip=True)
    num = encode_shard(varied, "train", name, out)
    found = load_file(out)
    assert num == 237
    assert (found["codes"].dtype, found["codes"].shape) == (torch.uint16, (237, 3, 30))
    assert len(found["keys"]) == len(found["labels"]) == 237
    assert bytes(found["keys"][1].tolist()) == b"train-00001201"
    dataset = ShardDataset(kept_shards, "train")
    assert found["labels"].tolist() == dataset.labels[1200:].tolist()
    tokenizer = load_tokenizer(tokenizer_run / "model")
    augmentation = Augmentation(crop=True, flip=True, seed=0)
    for row, view in ((0, 0), (0, 2), (100, 1), (236, 2)):
        cut = augmentation.cut(view, 1200 + row)
        image = dataset.samples([1200 + row], [cut])[0]["image"]
        expected = tokenizer.encode(to_float(image[None]))[0]
        # a batch of another size may round a near tie the other way
        assert (found["codes"][row, view].long() == expected).float().mean() > 0.9
    assert (found["codes"][:, 0] != found["codes"][:, 1]).any(1).float().mean() > 0.9


def test_a_held_out_image_has_one_view(
    kept_shards: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    for views in (1, 3):
        out = tmp_path / f"{views}.safetensors"
        own = extraction(kept_shards, tokenizer_run, views=views)
        encode_shard(own, "val", "val-000001.tar", out)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()


def test_views_have_a_directory_of_their_own(kept_shards: Path, tokenizer_run: Path) -> None:
    names = {
        codes_dir(kept_shards, tokenizer_run, views=views, flip=flip).name
        for views, flip in ((1, False), (2, False), (2, True), (3, False))
    }
    assert len(names) == 4


@pytest.mark.parametrize(
    ("views", "flip", "message"),
    [
        (2, False, r"random crops need more .*--keep 1\.125"),
        (0, False, "views counts from 1"),
        (1, True, "raise --views to flip"),
    ],
)
def test_views_that_cannot_differ_are_refused(
    digits_shards: Path, tokenizer_run: Path, views: int, flip: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        codes_dir(digits_shards, tokenizer_run, views=views, flip=flip)


def test_loading_views(codes: Path, tmp_path: Path) -> None:
    codes_nL, labels_n = load_codes(codes, "val")
    one, labels = load_views(codes, "val")
    assert torch.equal(one, codes_nL[:, None])
    assert torch.equal(labels, labels_n)
    save_file(
        {"codes": torch.stack([codes_nL, codes_nL], dim=1), "labels": labels_n.int()},
        tmp_path / "train-000000.safetensors",
    )
    content = {"num": 360, "shards": ["train-000000.safetensors"]}
    write_json(tmp_path / "manifest.json", {"format": FORMAT, "splits": {"train": content}})
    assert load_views(tmp_path, "train")[0].shape == (360, 2, 30)
    with pytest.raises(UserError, match="holds 2 views of each image, one is asked for"):
        load_codes(tmp_path, "train")


def test_a_view_follows_from_seed_epoch_and_sample_alone() -> None:
    samples = range(200)
    first = choose_views(0, 0, samples, 4)
    assert torch.equal(choose_views(0, 0, [7, 3], 4), first[[7, 3]])
    assert set(first.tolist()) == {0, 1, 2, 3}
    assert not torch.equal(choose_views(1, 0, samples, 4), first)
    seen = torch.stack([choose_views(0, epoch, samples, 4) for epoch in range(5, 9)])
    assert torch.equal(seen.sort(0).values, torch.arange(4)[:, None].expand(4, 200))
    assert choose_views(0, 9, samples, 1).tolist() == [0] * 200


def test_what_is_left_out_of_the_data_is_left_out_of_the_codes(
    kept_shards: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    """In the order of the images that are left, each with the views that it has in any case."""
    name, skipped = "train-000004.tar", {"train": {"train-00001203": 1, "train-000001.tar": 300}}
    whole, part = (
        extraction(kept_shards, tokenizer_run, views=2, skipped=left_out)
        for left_out in ({}, skipped)
    )
    assert encode_shard(whole, "train", name, tmp_path / "whole.safetensors") == 237
    assert encode_shard(part, "train", name, tmp_path / "part.safetensors") == 236
    found, expected = (load_file(tmp_path / f"{n}.safetensors") for n in ("part", "whole"))
    kept = torch.arange(237) != 3
    assert torch.equal(found["keys"], expected["keys"][kept])
    assert torch.equal(found["labels"], expected["labels"][kept])
    equal = found["codes"].long() == expected["codes"].long()[kept]
    assert equal.float().mean() > 0.99  # a batch of another size may round a near tie elsewhere
    store = open_store(kept_shards)
    assert codes_dir(store, tokenizer_run, skipped=skipped) != codes_dir(store, tokenizer_run)
    assert codes_dir(store, tokenizer_run, skipped={}) == codes_dir(kept_shards, tokenizer_run)


@pytest.mark.ray
def test_a_stopped_extraction_goes_on_with_what_is_missing(
    digits_shards: Path, tokenizer_run: Path, tmp_path: Path, ray_session: object
) -> None:
    save_tokenizer(load_tokenizer(tokenizer_run / "model"), tmp_path / "model")
    write_json(tmp_path / "config.json", {"kind": "train tokenizer"})
    directory = encode(digits_shards, tmp_path)
    whole = {path.name: path.read_bytes() for path in directory.iterdir()}
    kept = directory / "train-000001.safetensors"
    for path in directory.iterdir():  # as a kill leaves it: some shards, and no manifest
        if path != kept:
            path.unlink()
    (directory / ".train-000002.safetensors.0a1b2c3d.tmp").write_bytes(b"half")
    stamp = kept.stat().st_mtime_ns
    assert encode(digits_shards, tmp_path) == directory
    assert kept.stat().st_mtime_ns == stamp
    assert {name: (directory / name).read_bytes() for name in whole} == whole


@pytest.mark.ray
def test_views_under_ray(
    kept_shards: Path, tokenizer_run: Path, tmp_path: Path, ray_session: object
) -> None:
    save_tokenizer(load_tokenizer(tokenizer_run / "model"), tmp_path / "model")
    write_json(tmp_path / "config.json", {"kind": "train tokenizer"})
    directory = encode(kept_shards, tmp_path, views=2)
    assert directory == codes_dir(kept_shards, tmp_path, views=2)
    codes_nVL, labels_n = load_views(directory, "train")
    assert codes_nVL.shape == (1437, 2, 30)
    assert labels_n.tolist() == ShardDataset(kept_shards, "train").labels.tolist()
    assert (codes_nVL[:, 0] != codes_nVL[:, 1]).any(1).float().mean() > 0.9
    assert load_codes(directory, "val")[0].shape == (360, 30)
    alone = tmp_path / "alone.safetensors"
    own = extraction(kept_shards, tmp_path, views=2)
    encode_shard(own, "train", "train-000002.tar", alone)
    assert alone.read_bytes() == (directory / "train-000002.safetensors").read_bytes()

"""Pipelines by Hugging Face id, without a network: the local cache stands for the hub."""

import errno
import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from srdd import Pipeline, load_pipeline
from srdd.errors import UserError
from srdd.var.pipeline import save_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def saved(make_pipeline: Callable[..., Pipeline], tmp_path: Path) -> Path:
    save_pipeline(make_pipeline(), tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no way out."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_an_id_is_fetched_and_loaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo_id: str) -> str:
        asked.append(repo_id)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = load_pipeline("owner/name")
    assert asked == ["owner/name"]
    own = load_pipeline(saved).transformer.state_dict()
    assert all(torch.equal(t, own[k]) for k, t in found.transformer.state_dict().items())
    load_pipeline(str(saved))
    assert asked == ["owner/name"]  # a directory asks nobody


def test_an_id_in_the_cache_needs_no_network(saved: Path, cache: Path) -> None:
    repository = cache / "models--owner--name"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert load_pipeline("owner/name").class_names[0] == "class 0"


def test_an_id_that_is_nowhere_is_refused_in_one_line(cache: Path) -> None:
    with pytest.raises(
        UserError, match="owner/name does not exist here, and the hub cannot be reached"
    ) as caught:
        load_pipeline("owner/name")
    assert "\n" not in str(caught.value)


def test_a_proxy_that_lets_nothing_through_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def refuse() -> None:
            for _ in range(2):  # two questions are asked
                connection, _address = proxy.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        huggingface_hub.close_session()  # it keeps the proxy of its first use
        with pytest.raises(UserError, match=r"the hub cannot be reached .* HTTPS_PROXY$"):
            load_pipeline("owner/name")
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "denied", "hub/x")],
)
def test_a_disk_that_cannot_keep_a_download_is_not_the_hub_s_fault(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def download(repo_id: str) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(OSError, match=r"No space left|denied") as raised:
        load_pipeline("owner/name")
    assert raised.value is error


def test_a_repository_of_another_format_is_refused(cache: Path) -> None:
    """Such as FoundationVision/var, which holds VAR's own files: those are for srdd convert."""
    snapshot = cache / "models--owner--other" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "var_d16.pth").write_bytes(b"")
    refs = cache / "models--owner--other" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    with pytest.raises(
        UserError, match=r"^owner/other is no pipeline: it has no transformer/config\.json"
    ):
        load_pipeline("owner/other")

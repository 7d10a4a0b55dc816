"""``run`` on a real Ray Serve: what it refuses, and how a signal ends it."""

import base64
import os
import signal
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import torch

from srdd import image_seed, load_pipeline, sample
from srdd.errors import UserError
from srdd.images import to_uint8
from srdd.var.pipeline import save_pipeline
from srdd_platform.core.images import to_png
from srdd_platform.core.ray_session import Session
from srdd_platform.serving.app import requests_in_progress, run, until_signal
from srdd_platform.serving.options import ServeOptions

pytestmark = pytest.mark.ray

PATH = "/v1/images/generations"
POLLS = 400  # a bound; each poll is a request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_block_and_nothing_after_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with until_signal():
        os.kill(os.getpid(), number)
        pytest.fail("the signal was ignored")
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_requests_in_progress_finish(
    ray_session: Session, slow_pipeline: Path, number: signal.Signals
) -> None:
    url = ""
    answers: list[Future[httpx.Response]] = []
    refused: list[Future[httpx.Response]] = []

    def until_refused() -> httpx.Response:
        while (answer := httpx.get(f"{url}/healthz", trust_env=False)).status_code == 200:
            pass
        return answer

    def ready(where: str) -> None:
        nonlocal url
        url = where
        for label in range(3):
            body = {"class": label, "n": 4, "seed": label}
            answers.append(pool.submit(httpx.post, f"{url}{PATH}", json=body, timeout=60))
        for _ in range(POLLS):
            load = httpx.get(f"{url}/healthz", trust_env=False).json()["images"]
            if sum(load.values()) > 8:  # all three are inside, none is finished
                break
        os.kill(os.getpid(), number)

    with ThreadPoolExecutor(4) as pool:
        run(
            ServeOptions(directory=slow_pipeline, port=0, max_batch=2), ready=ready,
            stopping=lambda: refused.append(pool.submit(until_refused)),
        )  # fmt: skip
        pipeline = load_pipeline(slow_pipeline)
        for label, answer in enumerate(each.result() for each in answers):
            assert answer.status_code == 200
            seeds = [image_seed(label, i) for i in range(4)]
            images = to_uint8(sample(pipeline, torch.tensor([label] * 4), None, seeds).images)
            files = [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]
            assert files == [to_png(image) for image in images]
        late = refused[0].result()
    assert late.status_code == 503
    assert late.headers["connection"] == "close"
    assert late.json()["error"]["message"] == "no model is served now: the server starts or stops"
    assert 1 <= int(late.headers["retry-after"]) <= 120
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", trust_env=False)
    assert ray.is_initialized()
    actors = ray.util.list_named_actors(all_namespaces=True)
    assert not [actor for actor in actors if actor["namespace"] == "serve"]


def test_a_proxy_that_is_too_busy_to_answer_still_has_requests() -> None:
    with socket.socket() as proxy, httpx.Client(timeout=0.05, trust_env=False) as client:
        proxy.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        assert not requests_in_progress(client, url)  # nobody listens: it has ended
        proxy.listen()
        assert requests_in_progress(client, url)


def test_a_model_that_cannot_draw_is_refused_with_the_reason(
    ray_session: Session, tiny_pipeline: Path, tmp_path: Path
) -> None:
    broken = load_pipeline(tiny_pipeline)
    broken.transformer.class_emb.weight[0] = float("nan")
    save_pipeline(broken, tmp_path / "broken")
    with pytest.raises(UserError) as refused:
        run(ServeOptions(directory=tmp_path / "broken", port=0))
    assert str(refused.value) == ("the model did not start: non-finite logits at scale 1x1")


def test_a_taken_port_is_refused_before_anything_starts(tiny_pipeline: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^--port {port} is taken on 127\.0\.0\.1: give"):
            run(ServeOptions(directory=tiny_pipeline, port=port))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 65536}, "--port must lie in"),
        ({"port": 0, "host": "no.such.host.invalid"}, "--host no.such.host.invalid is not an addr"),
        ({"port": 0, "host": "192.0.2.1"}, "--host 192.0.2.1 is not an address of this machine"),
        ({"port": 0, "replicas": 0}, "--replicas must be at least 1"),
        ({"port": 0, "max_batch": 0}, "--max-batch must be at least 1"),
        ({"port": 0, "dtype": "int8"}, "--dtype must be one of float32"),
        ({"port": 0, "device": "tpu"}, "--device must be cpu or cuda"),
        ({"port": 0, "replicas": 99}, "99 CPUs"),
    ],
)
def test_wrong_settings_are_refused(
    ray_session: Session, tiny_pipeline: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(ServeOptions(directory=tiny_pipeline, **settings))


def test_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pipeline directory"):
        run(ServeOptions(directory=tmp_path))

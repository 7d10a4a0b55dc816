"""The API on a real Ray Serve, on the loopback interface."""

import asyncio
import base64
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import torch
from ray import serve

from srdd import SamplerConfig, image_seed, load_pipeline, sample
from srdd.errors import UserError
from srdd.pipeline import save_pipeline
from srdd_platform.images import to_png, to_uint8
from srdd_platform.ray_session import Session
from srdd_platform.serving.app import (
    ReplicaOptions,
    _free_port,
    _until_signal,
    deploy,
    run,
    start,
)

pytestmark = pytest.mark.ray

PATH = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}
POLLS = 400  # a bound; each poll is a request
POLL_S = 0.1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_block_and_nothing_after_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with _until_signal():
        os.kill(os.getpid(), number)
        pytest.fail("the signal was ignored")
    assert signal.getsignal(number) is before


def test_run_serves_until_a_signal_and_leaves_ray_up(
    ray_session: Session, tiny_pipeline: Path
) -> None:
    seen: list[int] = []

    def ready(url: str) -> None:
        seen.append(httpx.get(f"{url}/healthz", trust_env=False).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    run(tiny_pipeline, port=0, max_batch=2, ready=ready)
    assert seen == [200]
    assert ray.is_initialized()
    actors = ray.util.list_named_actors(all_namespaces=True)
    assert not [actor for actor in actors if actor["namespace"] == "serve"]


def test_a_model_that_cannot_draw_is_refused_with_the_reason(
    ray_session: Session, tiny_pipeline: Path, tmp_path: Path
) -> None:
    broken = load_pipeline(tiny_pipeline)
    broken.transformer.class_emb.weight[0] = float("nan")
    save_pipeline(broken, tmp_path / "broken")
    with pytest.raises(UserError) as refused:
        run(tmp_path / "broken", port=0)
    assert str(refused.value) == (
        "the model did not start: FloatingPointError: non-finite logits at scale 1x1"
    )


@pytest.fixture(scope="module")
def url(
    ray_session: Session, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Serve with two applications: one at /, and one at /slow that draws image by image."""
    root = tmp_path_factory.mktemp("served")
    tiny = load_pipeline(tiny_pipeline)
    guided = SamplerConfig(cfg=1.5, refine_steps=2, resample_threshold=0.1)
    long = SamplerConfig(refine_steps=20, resample="simple")
    save_pipeline(replace(tiny, sampler=guided), root / "guided")
    save_pipeline(replace(tiny, sampler=long), root / "long")
    url = start("127.0.0.1", _free_port("127.0.0.1", 0))
    try:
        deploy(ReplicaOptions(pipeline=str(root / "guided")))
        slow = ReplicaOptions(pipeline=str(root / "long"), max_batch=1, max_images=64)
        deploy(slow, name="slow", route_prefix="/slow")
        yield url
    finally:
        serve.shutdown()


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        yield client


def talk(url: str, use: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            return await use(client)

    return asyncio.run(main())


def test_an_image_is_the_sampler_s_own(client: httpx.Client, tiny_pipeline: Path) -> None:
    answer = client.post(PATH, json={"class": "four", "n": 2, "seed": 11})
    assert answer.status_code == 200
    pipeline = load_pipeline(tiny_pipeline)
    settings = SamplerConfig(cfg=1.5, refine_steps=2, resample_threshold=0.1)
    seeds = [image_seed(11, i) for i in range(2)]
    images = to_uint8(sample(pipeline, torch.tensor([4, 4]), settings, seeds).images)
    files = [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]
    assert files == [to_png(image) for image in images]
    assert answer.json()["settings"]["cfg"] == 1.5


def test_concurrent_clients_share_batches_and_get_the_same_bytes(url: str) -> None:
    bodies = [{"class": i, "n": 1 + i % 4, "seed": 5 + i % 3} for i in range(8)]

    async def use(client: httpx.AsyncClient) -> tuple[list[Any], list[Any]]:
        alone = [(await client.post(PATH, json=body)).json() for body in bodies]
        together: list[Any] = []
        for _ in range(POLLS):  # until one burst has met in the engine
            burst = await asyncio.gather(*(client.post(PATH, json=body) for body in bodies))
            together = [answer.json() for answer in burst]
            if all(one["timing"]["batch_images"] > len(one["data"]) for one in together):
                break
        return alone, together

    alone, together = talk(url, use)
    for body, one, other in zip(bodies, alone, together, strict=True):
        assert one["timing"]["batch_images"] == body["n"] < other["timing"]["batch_images"]
        assert len(one["data"]) == body["n"]
        assert one["data"] == other["data"]
        assert one["settings"] == other["settings"]


INDEX = ': give an index below 10 or one of "zero", "one"'
N, SEED = "give an integer from 1 to 64", "give an integer from 0 to 9007199254740991"
KNOWN = "unknown field; known: class, n, seed, response_format"
KIND = "give a class's index or name"
REFUSED: list[tuple[str, list[Any], str]] = [
    ("{}", ["body", "class"], KIND),
    ('{"class": null}', ["body", "class"], KIND),
    ('{"class": true}', ["body", "class"], KIND),
    ('{"class": 1.0}', ["body", "class"], KIND),
    ('{"class": 10}', ["body", "class"], INDEX),
    ('{"class": -1}', ["body", "class"], INDEX),
    ('{"class": "ten"}', ["body", "class"], INDEX),
    ('{"class": "\\ud800"}', ["body", "class"], INDEX),
    ('{"class": 1, "n": 0}', ["body", "n"], N),
    ('{"class": 1, "n": 65}', ["body", "n"], N),
    ('{"class": 1, "n": true}', ["body", "n"], N),
    ('{"class": 1, "n": "3"}', ["body", "n"], N),
    ('{"class": 1, "n": null}', ["body", "n"], N),
    ('{"class": 1, "n": NaN}', ["body", "n"], N),
    ('{"class": 1, "n": 1e400}', ["body", "n"], N),
    ('{"class": 1, "seed": -1}', ["body", "seed"], SEED),
    ('{"class": 1, "seed": 9007199254740992}', ["body", "seed"], SEED),
    ('{"class": 1, "seed": 7.0}', ["body", "seed"], SEED),
    ('{"class": 1, "response_format": "url"}', ["body", "response_format"], "give b64_json"),
    ('{"class": 1, "cfg": 2}', ["body", "cfg"], KNOWN),
    ('{"class": 1, "class_": 1}', ["body", "class_"], KNOWN),
    ('{"class": 1, "\\ud800": 1}', ["body"], "unicode string"),
    ('{"class": 1', ["body", 11], "the body is not valid JSON"),
    ("", ["body"], "required"),
    ("[]", ["body"], "dictionary"),
]


@pytest.mark.parametrize(("body", "loc", "allowed"), REFUSED)
def test_a_wrong_body_is_refused_by_field(
    client: httpx.Client, body: str, loc: list[Any], allowed: str
) -> None:
    answer = client.post(PATH, content=body, headers=JSON)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert error["loc"] == loc
    assert allowed in error["msg"]
    assert error.keys() == {"loc", "msg", "type"}


@pytest.mark.parametrize("body", ["[" * 10_000, '{"class": ' + "1" * 5_000 + "}"])
def test_json_that_cannot_be_read_is_the_client_s_fault(client: httpx.Client, body: str) -> None:
    answer = client.post(PATH, content=body, headers=JSON)
    assert answer.status_code in (400, 422)
    assert "detail" in answer.json()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", PATH, 405), ("POST", "/healthz", 405), ("GET", "/v1", 404)],
)
def test_wrong_methods_and_paths(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large(client: httpx.Client, announced: bool) -> None:
    text = json.dumps({"class": 1, "n": 1}).encode().ljust(1_000_000)
    content = text if announced else iter([text[:500_000], text[500_000:]])
    answer = client.post(PATH, content=content, headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "the body may have at most 16384 bytes"


def test_health_and_models(client: httpx.Client) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    (card,) = client.get("/v1/models").json()["data"]
    assert card["classes"][3] == "three"
    assert card["settings"]["patch_nums"] == [1, 2, 3, 4]


def test_a_full_queue_refuses_until_a_client_has_left(url: str) -> None:
    async def until(client: httpx.AsyncClient, good: Callable[[dict[str, Any]], bool]) -> None:
        for _ in range(POLLS):
            health = (await client.get("/slow/healthz")).json()
            if good(health):
                return
            await asyncio.sleep(POLL_S)
        pytest.fail(f"never came: the last answer was {health}")

    async def use(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        path = f"/slow{PATH}"
        body = {"class": 1, "n": 64}  # all that fits, so nothing may stand beside it
        large = asyncio.ensure_future(client.post(path, json=body))
        await until(client, lambda health: sum(health["images"].values()) > 0)
        refused = await client.post(path, json=body)
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        await until(client, lambda health: sum(health["images"].values()) == 0)
        health = (await client.get("/slow/healthz")).json()
        assert health["requests"] == {"refused": 1, "cancelled": 1}
        return refused, await client.post(path, json={"class": 1})

    refused, accepted = talk(url, use)
    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/json"
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert "try again in" in refused.json()["detail"]
    assert accepted.status_code == 200


def test_images_are_counted_where_prometheus_reads(client: httpx.Client) -> None:
    assert client.post(PATH, json={"class": 1, "n": 3}).status_code == 200
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    wanted = ("images_total{", "requests_total{", "request_seconds_sum{")
    text = ""
    for _ in range(POLLS):
        text = httpx.get(address, trust_env=False, timeout=30).text
        if all(f"ray_srdd_{name}" in text for name in wanted):
            return
        time.sleep(POLL_S)
    pytest.fail("\n".join(line for line in text.splitlines() if "srdd" in line))


def test_a_taken_port_is_refused_before_anything_starts(tiny_pipeline: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            run(tiny_pipeline, port=port)


def test_a_cluster_that_serves_already_is_refused(url: str, tiny_pipeline: Path) -> None:
    with pytest.raises(UserError, match="already runs"):
        run(tiny_pipeline, port=0)
    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 65536}, "--port must lie in"),
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
        run(tiny_pipeline, **settings)


def test_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pipeline directory"):
        run(tmp_path)

"""The API on a real Ray Serve, on the loopback interface."""

import asyncio
import base64
import json
import re
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
from srdd.images import to_uint8
from srdd.var.pipeline import save_pipeline
from srdd_platform.core.images import to_png
from srdd_platform.core.ray_session import Session
from srdd_platform.serving.app import free_port, run
from srdd_platform.serving.deployment import ReplicaOptions, deploy, start
from srdd_platform.serving.options import ServeOptions

pytestmark = pytest.mark.ray

PATH = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}
POLLS = 400  # a bound; each poll is a request
POLL_S = 0.1


@pytest.fixture(scope="module")
def url(ray_session: Session, tiny_pipeline: Path, slow_pipeline: Path) -> Iterator[str]:
    """Serve with two applications: one at /, and one at /slow that draws image by image."""
    guided = SamplerConfig(cfg=1.5, refine_steps=2, resample_threshold=0.1)
    directory = slow_pipeline.with_name("guided")
    save_pipeline(replace(load_pipeline(tiny_pipeline), sampler=guided), directory)
    url = start("127.0.0.1", free_port("127.0.0.1", 0))
    try:
        deploy(ReplicaOptions(pipeline=str(directory)))
        slow = ReplicaOptions(pipeline=str(slow_pipeline), max_batch=1, max_images=64)
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


PHASES = ("queue", "sample", "encode", "total")


def replicas(application: str) -> list[str]:
    """Serve's names of an application's replicas, which are those of their actors."""
    names = ray.util.list_named_actors(all_namespaces=True)
    return [
        each["name"] for each in names if each["name"].startswith(f"SERVE_REPLICA::{application}#")
    ]


def exported(replica: str) -> dict[str, float]:
    """Our metrics of a replica, where Prometheus reads them."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    sums: dict[str, float] = {}
    for line in httpx.get(address, trust_env=False, timeout=30).text.splitlines():
        if line.startswith("ray_srdd_") and f'replica="{replica.split("#")[-1]}"' in line:
            name, labels, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()  # type: ignore
            kept = re.findall(r'((?:phase|outcome)="\w+")', labels)
            key = f"{name.removeprefix('ray_srdd_')}{''.join(kept)}"
            sums[key] = sums.get(key, 0.0) + float(value)
    return sums


def test_the_exported_seconds_are_those_of_the_answers(client: httpx.Client) -> None:
    (replica,) = replicas("srdd")

    def until(good: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        for _ in range(POLLS):
            sums = exported(replica)
            if good(sums):
                return sums
            time.sleep(POLL_S)
        pytest.fail(f"never came: the last sums were {sums}")

    def done(sums: dict[str, float]) -> float:
        return sums.get('requests_totaloutcome="done"', 0.0)

    known = client.get("/healthz").json()["requests"].get("done", 0)
    before = until(lambda sums: done(sums) == known)
    timings = []
    for n in (1, 3, 2):
        answer = client.post(PATH, json={"class": 1, "n": n})
        timings.append(answer.json()["timing"])
    after = until(lambda sums: done(sums) == known + 3)

    def grown(key: str) -> float:
        return after[key] - before.get(key, 0.0)

    assert grown("images_total") == 6
    for phase in PHASES:
        wanted = sum(timing[f"{phase}_s"] for timing in timings)
        assert grown(f'request_phase_seconds_totalphase="{phase}"') == pytest.approx(wanted)
        assert grown(f'request_seconds_countphase="{phase}"') == 3


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/openapi.json", "/-/healthz"])
def test_head_has_the_headers_of_get_and_no_body(client: httpx.Client, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content, get.status_code) == (200, b"", 200)
    for name in ("content-type", "content-length"):
        assert head.headers.get(name) == get.headers.get(name)


def test_serve_s_own_errors_are_json(client: httpx.Client) -> None:
    body = {"class": 1, "n": 64}
    late = client.post(f"/slow{PATH}", json=body, headers={"X-Request-Timeout-Seconds": "0.1"})
    assert (late.status_code, late.json()["error"]["code"]) == (408, "timeout")
    assert "timed out after 0.1" in late.json()["detail"]
    bad = client.get("/healthz", headers={"X-Request-ID": b"\xff"})
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "bad_request")
    assert client.get("/-/in_progress").json() == {"requests": 0}


def test_a_cluster_that_serves_already_is_refused(url: str, tiny_pipeline: Path) -> None:
    with pytest.raises(UserError, match="already runs"):
        run(ServeOptions(directory=tiny_pipeline, port=0))
    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200


def test_a_request_whose_replica_is_killed_is_answered_in_json(url: str) -> None:
    """The last of this module: the replica is slow to come back."""

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        body = {"class": 1, "n": 64}
        asked = asyncio.ensure_future(client.post(f"/slow{PATH}", json=body))
        while sum((await client.get("/slow/healthz")).json()["images"].values()) == 0:
            await asyncio.sleep(POLL_S)
        (replica,) = replicas("slow")
        ray.kill(ray.get_actor(replica, namespace="serve"), no_restart=True)
        return await asked

    lost = talk(url, use)
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "replica_lost")
    assert 1 <= int(lost.headers["retry-after"]) <= 120

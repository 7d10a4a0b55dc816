"""The API in process, without Ray or a socket; what a request may say is tested over HTTP."""

import asyncio
import base64
import io
import json
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from srdd import Pipeline, SamplerConfig, image_seed, load_pipeline, sample
from srdd.images import to_uint8
from srdd_platform.core.images import to_png
from srdd_platform.serving.api import SEEDS, Service, create_app
from srdd_platform.serving.engine import Engine
from srdd_platform.serving.errors import QueueFullError
from srdd_platform.serving.middleware import MAX_BODY

PATH = "/v1/images/generations"
Use = Callable[[httpx.AsyncClient, Service], Awaitable[Any]]


@pytest.fixture
def pipeline(tiny_pipeline: Path) -> Pipeline:
    settings = SamplerConfig(cfg=1.5, refine_steps=1, resample_threshold=0.1)
    return replace(load_pipeline(tiny_pipeline), sampler=settings)


def use(pipeline: Pipeline, talk: Use, *, warm: bool = True, record: Any = None) -> Any:
    """Talk to the API over a fresh engine."""

    async def main() -> Any:
        engine = Engine(pipeline, max_batch=8, max_images=64)
        engine.warm = warm
        service = Service(engine, record)
        transport = httpx.ASGITransport(create_app(lambda: service))
        async with httpx.AsyncClient(transport=transport, base_url="http://srdd") as client:
            try:
                return await talk(client, service)
            finally:
                await engine.close()

    return asyncio.run(main())


def post(pipeline: Pipeline, body: Any) -> httpx.Response:
    return use(pipeline, lambda client, _: client.post(PATH, json=body))


def test_an_answer_holds_the_images_that_the_seed_means(pipeline: Pipeline) -> None:
    answer = post(pipeline, {"class": "three", "n": 3, "seed": 7}).json()
    seeds = [image_seed(7, i) for i in range(3)]
    images = to_uint8(sample(pipeline, torch.tensor([3] * 3), None, seeds).images)
    assert answer["data"] == [
        {
            "b64_json": base64.b64encode(to_png(image)).decode(),
            "seed": seed,
            "class": 3,
            "class_name": "three",
        }
        for image, seed in zip(images, seeds, strict=True)
    ]
    png = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert (png.format, png.mode, png.size) == ("PNG", "RGB", (16, 16))
    assert answer["settings"] == {
        "patch_nums": [1, 2, 3, 4],
        "cfg": 1.5,
        "cfg_ramp": "linear",
        "top_k": 0,
        "top_p": 1.0,
        "epsilon": 0.0,
        "refine_steps": 1,
        "resample": "masked",
        "resample_threshold": 0.1,
        "feedback": "updated",
        "mask": "markov",
        "resolution": 16,
        "dtype": "float32",
    }
    timing = answer["timing"]
    assert timing["batch_images"] == 3
    parts = timing["queue_s"] + timing["sample_s"] + timing["encode_s"]
    assert 0 < parts <= timing["total_s"] + 1e-5
    assert answer.keys() == {"created", "data", "settings", "timing"}


def test_a_class_s_name_and_index_mean_the_same(pipeline: Pipeline) -> None:
    by_name = post(pipeline, {"class": "nine", "seed": 0, "response_format": "b64_json"}).json()
    assert by_name["data"] == post(pipeline, {"class": 9, "seed": 0, "n": 1}).json()["data"]


def test_a_seed_left_out_is_drawn_and_told(pipeline: Pipeline) -> None:
    first, second = (post(pipeline, {"class": 1}).json()["data"] for _ in range(2))
    assert first[0]["seed"] != second[0]["seed"]
    assert 0 <= first[0]["seed"] < SEEDS
    again = post(pipeline, {"class": 1, "seed": first[0]["seed"]}).json()["data"]
    assert again == first
    assert len(post(pipeline, {"class": 1, "seed": None}).json()["data"]) == 1


@pytest.mark.parametrize(
    ("asked", "index", "name"),
    [
        (7, 0, "7"),  # pytorch/vision#714: a number that is a class's name means that class
        ("7", 0, "7"),
        ("index:7", 7, "cafe\u0301, au lait"),
        ("caf\u00e9, au lait", 7, "cafe\u0301, au lait"),
        (' "two"\r\n', 2, "two"),
    ],
)
def test_a_class_is_asked_for_by_the_rules_of_every_option(
    pipeline: Pipeline, asked: int | str, index: int, name: str
) -> None:
    names = list(pipeline.class_names)
    names[0], names[7] = "7", "cafe\u0301, au lait"
    named = replace(pipeline, class_names=tuple(names))
    (image,) = post(named, {"class": asked, "seed": 0}).json()["data"]
    assert (image["class"], image["class_name"]) == (index, unicodedata.normalize("NFC", name))
    refused = post(named, {"class": 1, "seed": 0})
    assert refused.status_code == 422
    assert "no class '1': give index:N with N below 10" in refused.json()["detail"][0]["msg"]


def test_a_name_that_is_not_utf8_is_answered_escaped(pipeline: Pipeline) -> None:
    named = replace(pipeline, class_names=("caf\udce9", *pipeline.class_names[1:]))
    (image,) = post(named, {"class": 0, "seed": 0}).json()["data"]
    assert image["class_name"] == r"caf\xe9"
    assert post(named, {"class": r"caf\xe9", "seed": 0}).json()["data"] == [image]


def test_an_unconditional_model_needs_no_class(pipeline: Pipeline) -> None:
    model = pipeline.transformer
    model.config = replace(model.config, unconditional=True, num_classes=1)
    plain = replace(pipeline, sampler=SamplerConfig(), class_names=("digits",))
    answer = post(plain, {"seed": 3}).json()
    assert answer["data"] == post(plain, {"class": 0, "seed": 3}).json()["data"]
    models = use(plain, lambda client, _: client.get("/v1/models")).json()
    assert models["data"][0]["unconditional"] is True


def test_models_lists_names_and_settings(pipeline: Pipeline) -> None:
    (card,) = use(pipeline, lambda client, _: client.get("/v1/models")).json()["data"]
    assert card["classes"] == list(pipeline.class_names)
    assert (card["settings"]["cfg"], card["settings"]["mask"]) == (1.5, "markov")
    assert card["limits"] == {"n": 64, "images": 64, "body_bytes": MAX_BODY}


def test_health_waits_for_the_warm_up(pipeline: Pipeline) -> None:
    async def talk(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        before = await client.get("/healthz")
        service.engine.warm_up()
        return [before, await client.get("/healthz")]

    before, after = use(pipeline, talk, warm=False)
    assert (before.status_code, before.json()["detail"]) == (503, "warming up")
    assert after.status_code == 200
    assert after.json() == {
        "status": "ok", "images": {"active": 0, "waiting": 0}, "requests": {},
    }  # fmt: skip


def test_health_fails_once_the_loop_has_ended(pipeline: Pipeline) -> None:
    async def talk(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        body = {"class": 1}
        good = await client.post(PATH, json=body)
        await service.engine.close()
        return [good, await client.get("/healthz"), await client.post(PATH, json=body)]

    good, health, refused = use(pipeline, talk)
    assert good.status_code == 200
    assert (health.status_code, refused.status_code) == (503, 503)
    assert 10 <= int(refused.headers["retry-after"]) <= 20
    assert refused.json()["detail"] == "the step loop has ended"
    assert refused.json()["error"]["code"] == "stopped"


def test_a_failure_is_told_without_a_traceback(pipeline: Pipeline) -> None:
    pipeline.transformer.class_emb.weight[3] = float("nan")
    outcomes: list[tuple[str, int]] = []

    async def talk(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        return [await client.post(PATH, json={"class": label, "n": 2}) for label in (3, 2)]

    bad, good = use(pipeline, talk, record=lambda *seen: outcomes.append(seen[:2]))
    assert bad.status_code == 500
    assert bad.json()["detail"] == "FloatingPointError: non-finite logits at scale 1x1"
    assert good.status_code == 200
    assert outcomes == [("failed", 2), ("done", 2)]


def test_a_full_queue_says_when_to_come_back(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any) -> None:
        raise QueueFullError(17)

    async def talk(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        monkeypatch.setattr(service.engine, "generate", full)
        return [await client.post(PATH, json={"class": 1}), await client.get("/healthz")]

    refused, health = use(pipeline, talk)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "17"
    assert refused.json()["detail"] == "the queue is full: try again in 17 s"
    assert refused.json()["error"]["code"] == "queue_full"
    assert health.json()["requests"] == {"refused": 1}


def test_a_body_that_is_too_large_is_refused_however_it_comes(pipeline: Pipeline) -> None:
    body = json.dumps({"class": 1}).encode()

    async def streamed(size: int) -> AsyncIterator[bytes]:
        yield body
        for _ in range(size - len(body)):
            yield b" "

    async def talk(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        json_type = {"Content-Type": "application/json"}
        return [
            await client.post(PATH, content=content, headers=json_type)
            for content in (
                body.ljust(MAX_BODY),
                body.ljust(MAX_BODY + 1),
                streamed(MAX_BODY),
                streamed(MAX_BODY + 1),
            )
        ]

    answers = use(pipeline, talk)
    assert [answer.status_code for answer in answers] == [200, 413, 200, 413]
    for answer in answers[1::2]:
        assert answer.json()["detail"] == "the body may have at most 16384 bytes"
        assert answer.json()["error"]["code"] == "body_too_large"


def test_the_schema_says_class_and_the_pages_load_nothing(pipeline: Pipeline) -> None:
    async def talk(client: httpx.AsyncClient, service: Service) -> list[httpx.Response]:
        return [await client.get(path) for path in ("/openapi.json", "/docs", "/redoc")]

    schema, docs, redoc = use(pipeline, talk)
    request = schema.json()["components"]["schemas"]["GenerationRequest"]
    assert request["properties"].keys() == {"class", "n", "seed", "response_format"}
    assert request["additionalProperties"] is False
    assert (docs.status_code, redoc.status_code) == (404, 404)

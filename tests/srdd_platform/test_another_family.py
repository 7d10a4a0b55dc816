"""A family that the platform has never heard of passes through all of it."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generators
import httpx
import pytest
from generators import Colours, ColourSettings, load_colours, make_colours, save_colours
from ray import cloudpickle, serve

from srdd import image_seed, sample
from srdd_platform.core.images import to_png, to_uint8
from srdd_platform.core.ray_session import Session
from srdd_platform.serving.api import Service, create_app
from srdd_platform.serving.app import free_port
from srdd_platform.serving.deployment import ReplicaOptions, deploy, start
from srdd_platform.serving.engine import Engine, Generated

PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def colours() -> Colours:
    return make_colours()


@pytest.fixture(scope="module")
def directory(colours: Colours, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colours(colours, tmp_path_factory.mktemp("pipelines") / "colours")


@pytest.fixture(scope="module")
def by_value() -> Iterator[None]:
    """Ray's workers get the family with the job: it is no package that they could import."""
    cloudpickle.register_pickle_by_value(generators)
    yield
    cloudpickle.unregister_pickle_by_value(generators)


def expected(generator: Colours, label: int, n: int, seed: int, settings: Any = None) -> list[str]:
    """The images of a request, as the API encodes them."""
    seeds = [image_seed(seed, i) for i in range(n)]
    images = to_uint8(sample(generator, [label] * n, settings, seeds).images)
    return [base64.b64encode(to_png(image)).decode() for image in images]


def test_requests_share_the_steps_of_a_batch(colours: Colours) -> None:
    settings = ColourSettings(noise=0.5, steps=5)
    requests = [(3, 2, 7, None), (3, 2, 7, settings), (9, 3, 1, None), (0, 5, 2, settings)]

    async def main() -> list[Generated]:
        engine = Engine(colours, max_batch=32)
        asked = [
            engine.generate([label] * n, [image_seed(seed, i) for i in range(n)], settings)
            for label, n, seed, settings in requests
        ]
        results = await asyncio.gather(*asked)
        await engine.close()
        return results

    results = asyncio.run(main())
    assert [result.batch_images for result in results] == [5, 7, 5, 7]  # by their settings
    for request, result in zip(requests, results, strict=True):
        encoded = [base64.b64encode(to_png(image)).decode() for image in result.images]
        assert encoded == expected(colours, *request)


def test_the_api_says_what_the_family_says(colours: Colours) -> None:
    async def main() -> tuple[httpx.Response, ...]:
        engine = Engine(colours)
        engine.warm_up()
        transport = httpx.ASGITransport(create_app(lambda: Service(engine)))
        async with httpx.AsyncClient(transport=transport, base_url="http://srdd") as client:
            body = {"class": "three", "n": 2, "seed": 7}
            answers = await client.post(PATH, json=body), await client.get("/v1/models")
        await engine.close()
        return answers

    answer, models = asyncio.run(main())
    assert [image["b64_json"] for image in answer.json()["data"]] == expected(colours, 3, 2, 7)
    (served,) = models.json()["data"]
    assert answer.json()["settings"] == served["settings"] == {
        "noise": 0.25, "steps": 3, "tint": "blue", "resolution": 16, "dtype": "float32",
    }  # fmt: skip
    assert (served["classes"], served["unconditional"]) == (list(generators.DIGITS), False)


@pytest.mark.ray
def test_a_replica_loads_it_and_answers_over_http(
    ray_session: Session, by_value: None, colours: Colours, directory: Path
) -> None:
    url = start("127.0.0.1", free_port("127.0.0.1", 0))
    try:
        deploy(ReplicaOptions(pipeline=str(directory), load=load_colours))
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            answer = client.post(PATH, json={"class": 4, "n": 3, "seed": 11})
            refused = client.post(PATH, json={"class": "ten"})
    finally:
        serve.shutdown()
    assert [image["b64_json"] for image in answer.json()["data"]] == expected(colours, 4, 3, 11)
    assert refused.status_code == 422
    assert 'give an index below 10 or one of "zero"' in refused.json()["error"]["message"]

"""A family that the platform has never heard of passes through all of it."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import generators
import httpx
import pytest
from generators import Colours, ColourSettings, load_colours, make_colours, save_colours
from ray import cloudpickle, serve

from srdd import image_seed, load_pipeline, sample
from srdd.errors import UserError
from srdd.images import to_uint8
from srdd.load import FAMILIES, load_var
from srdd_platform.core.images import to_png
from srdd_platform.core.ray_session import Session
from srdd_platform.evaluation.evaluator import load_evaluator
from srdd_platform.evaluation.protocol import EvaluationConfig
from srdd_platform.evaluation.sample_files import write_samples
from srdd_platform.report.specs import Frontier, Lines, Parallel
from srdd_platform.serving.api import Service, create_app
from srdd_platform.serving.app import free_port
from srdd_platform.serving.deployment import ReplicaOptions, deploy, start
from srdd_platform.serving.engine import Engine, Generated
from srdd_platform.sweep.definition import MODEL, Float, Int, Reference, Sweep
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.sweep.run import run_sweep

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


def files(
    generator: Colours, label: int, n: int, seed: int, settings: ColourSettings | None = None
) -> list[bytes]:
    """The images of a class as PNG files."""
    seeds = [image_seed(seed, i) for i in range(n)]
    images = to_uint8(sample(generator, [label] * n, settings, seeds).images)
    return [to_png(image) for image in images]


def decoded(answer: httpx.Response) -> list[bytes]:
    """The files in the API's answer."""
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]


def test_a_family_is_known_by_an_entry_in_the_registry(
    colours: Colours, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="is no pipeline"):
        load_pipeline(directory)
    monkeypatch.setitem(FAMILIES, "colours/model.safetensors", load_colours)
    loaded = load_pipeline(directory)
    assert (loaded.card, loaded.sampler) == (colours.card, colours.sampler)
    with pytest.raises(UserError, match="family colours: a scale-wise one"):
        load_var(directory)
    settings = {"noise": 0.5}
    write_samples(directory, tmp_path / "out", num=3, seed=5, classes="7", settings=settings)
    written = [(tmp_path / "out" / f"{i:06d}.png").read_bytes() for i in range(3)]
    assert written == files(colours, 7, 3, 5, ColourSettings(**settings))
    with pytest.raises(UserError, match="cfg is not a setting of this model, which has noise, st"):
        write_samples(directory, tmp_path / "not", settings={"cfg": 1.0})


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
        assert [to_png(image) for image in result.images] == files(colours, *request)


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
    assert decoded(answer) == files(colours, 3, 2, 7)
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
    assert decoded(answer) == files(colours, 4, 3, 11)
    assert refused.status_code == 422
    assert 'give an index below 10 or one of "zero"' in refused.json()["error"]["message"]


SWEEP = Sweep(
    name="noise",
    space={"noise": Float(0.05, 0.6), "steps": Int(1, 6)},
    first=[{"noise": 0.25, "steps": 2}],
    references=[
        Reference(name=f"{MODEL} without noise", settings={"noise": 0.0}),
        Reference(name=f"{MODEL}, 9 steps", settings={"steps": 9}),  # more than it knows
    ],
    figures=(Frontier(), Lines(x="noise", series="steps"), Parallel()),
)


@pytest.mark.ray
def test_it_is_swept_and_reported(
    ray_session: Session,
    by_value: None,
    colours: Colours,
    directory: Path,
    digits_shards: Path,
    classifier_dir: Path,
    tmp_path: Path,
) -> None:
    args = SweepArgs(
        model=directory, data=digits_shards, weights=classifier_dir, out=tmp_path / "sweep",
        trials=2, num=50,
    )  # fmt: skip
    outcome = run_sweep(SWEEP, args, load=load_colours)
    trials = [row for row in outcome.rows if row["kind"] == "trial"]
    assert [row["status"] for row in trials] == ["ok", "ok"]
    assert [row["tint"] for row in trials] == ["blue", "blue"]
    assert (trials[0]["noise"], trials[0]["steps"], trials[0]["nfe"]) == (0.25, 2, 2.0)
    assert [row["nfe"] for row in trials] == [row["steps"] for row in trials]
    still = [row for row in outcome.rows if row["name"] == "Colours (blue) without noise"]
    assert [(row["noise"], row["steps"], row["nfe"]) for row in still] == [(0.0, None, 1.0)]
    names = [row["name"] for row in outcome.rows if row["kind"] == "reference"]
    assert not [name for name in names if "9 steps" in name or "reconstruction" in name]
    evaluator = load_evaluator(
        EvaluationConfig(
            data=str(digits_shards), extractor="classifier", weights=str(classifier_dir), num=50
        )
    )
    found = evaluator.evaluate(colours, ColourSettings(noise=0.25, steps=2))
    assert trials[0]["fid"] == found["fid"]
    page = outcome.report.read_text()
    assert "Colours (blue) without noise" in page
    best = load_colours(tmp_path / "sweep" / "best")
    lowest = min(trials, key=lambda row: row["fid"])
    assert best.sampler == ColourSettings(noise=lowest["noise"], steps=lowest["steps"])

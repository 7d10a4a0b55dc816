"""The HTTP API over an :class:`Engine`: what a request may say and what it is answered.

::

    POST /v1/images/generations   {"class": 3, "n": 4, "seed": 7}: images as base64 PNG
    GET  /v1/models               class names and settings
    GET  /healthz                 200 once warm, 503 before and when the step loop has ended

Equal requests that give a seed have equal ``data``, whatever they were drawn beside.
"""

import asyncio
import base64
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response
from torch import Tensor

from srdd.class_names import find
from srdd.errors import UserError
from srdd.generator import Card
from srdd.rng import image_seeds
from srdd_platform.core.images import to_png
from srdd_platform.serving.engine import Engine
from srdd_platform.serving.errors import (
    QueueFullError,
    SamplingError,
    StoppedError,
    error_response,
)
from srdd_platform.serving.handlers import add_handlers
from srdd_platform.serving.middleware import MAX_BODY, BodyLimit, HeadAsGet, JsonRoute

MAX_N = 64  # images a request
SEEDS = 2**53  # a seed survives JSON and JavaScript

Outcome = Literal["done", "refused", "failed", "cancelled"]
Record = Callable[[Outcome, int, dict[str, float]], None]


def _class_type(value: object) -> object:
    """One message for both types; a union would name each of its branches as a field."""
    if value is not None and type(value) not in (int, str):
        raise PydanticCustomError("class_type", "Input should be an integer or a string")
    return value


class GenerationRequest(BaseModel):
    """What to draw."""

    model_config = ConfigDict(strict=True, extra="forbid")

    class_: Annotated[int | str | None, BeforeValidator(_class_type)] = Field(
        default=None,
        alias="class",
        description='a class\'s name, or its index: 2 and "2" mean the class called 2 where '
        "names are numbers, index:2 always means index 2; may be left out where the model has no "
        "classes",
    )
    n: int = Field(default=1, ge=1, le=MAX_N, description="number of images")
    seed: int | None = Field(
        default=None, ge=0, lt=SEEDS, description="of the first image; drawn if left out"
    )
    response_format: Literal["b64_json"] = "b64_json"


class ImageData(BaseModel):
    """One image, a function of its class, its seed and the settings."""

    b64_json: str = Field(description="a PNG file in base64")
    seed: int
    class_: int = Field(serialization_alias="class", description="the class's index")
    class_name: str


class Timing(BaseModel):
    """How the request went; differs from call to call."""

    queue_s: float
    sample_s: float
    encode_s: float
    total_s: float
    batch_images: int = Field(description="images in the largest batch shared, its own included")


class GenerationResponse(BaseModel):
    """Images, and how they were drawn."""

    created: int = Field(description="Unix time")
    data: list[ImageData]
    settings: dict[str, Any]
    timing: Timing


def _field_error(kind: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", "class"), "msg": message}])


def _label(card: Card, given: int | str | None) -> int:
    """The index of the class that a request means; 2 and "2" mean the same.

    Raises:
        RequestValidationError: there is no such class, or none was given.
    """
    if given is None:
        if card.unconditional:
            return 0
        raise _field_error("missing", "Field required")
    try:
        return find(card.class_names, str(given))
    except UserError as error:
        raise _field_error("unknown_class", str(error)) from None


class Service:
    """An engine, as the API's routes use it."""

    def __init__(self, engine: Engine, record: Record | None = None) -> None:
        self.engine = engine
        self._record = record
        self._outcomes: Counter[str] = Counter()

    def settings(self) -> dict[str, Any]:
        """What decides the images beside class and seed."""
        generator = self.engine.generator
        card, active = generator.card, generator.sampler.active()
        return {
            **{k: card.defaults.get(k) if value is None else value for k, value in active.items()},
            **card.tags,
            "resolution": card.resolution,
            "dtype": str(generator.dtype).removeprefix("torch."),
        }

    async def generate(self, body: GenerationRequest) -> GenerationResponse:
        """Draw, encode, answer; the outcome is recorded, whatever it is."""
        asked, card = time.monotonic(), self.engine.generator.card
        label = _label(card, body.class_)
        first = secrets.randbelow(SEEDS) if body.seed is None else body.seed
        try:
            seeds = (await asyncio.to_thread(image_seeds, first, 0, body.n)).tolist()
            drawn = await self.engine.generate([label] * body.n, seeds)
            started = time.monotonic()
            files = await asyncio.to_thread(_encode, drawn.images)
        except Exception as error:
            self._count("refused" if isinstance(error, QueueFullError) else "failed", body.n, {})
            if isinstance(error, SamplingError) and body.seed is None:
                error.repeats = False  # the next try has another seed
            raise
        except asyncio.CancelledError:
            self._count("cancelled", body.n, {})
            raise
        now, name = time.monotonic(), card.class_names[label]
        seconds = {
            "queue_s": round(drawn.queue_s, 6),
            "sample_s": round(drawn.sample_s, 6),
            "encode_s": round(now - started, 6),
            "total_s": round(now - asked, 6),
        }
        self._count("done", body.n, seconds)
        return GenerationResponse(
            created=int(time.time()),
            data=[
                ImageData(b64_json=file, seed=seed, class_=label, class_name=name)
                for file, seed in zip(files, seeds, strict=True)
            ],
            settings=self.settings(),
            timing=Timing(**seconds, batch_images=drawn.batch_images),
        )

    def models(self) -> dict[str, Any]:
        """The one model served."""
        card = self.engine.generator.card
        served = {
            "classes": list(card.class_names),
            "unconditional": card.unconditional,
            "settings": self.settings(),
            "limits": {"n": MAX_N, "images": self.engine.max_images, "body_bytes": MAX_BODY},
        }
        return {"data": [served]}

    def health(self) -> dict[str, Any]:
        """Images inside and requests so far, by outcome.

        Raises:
            HTTPException: 503, not warm yet or no longer alive.
        """
        if not self.engine.warm:
            raise HTTPException(503, "warming up")
        try:
            self.engine.check()
        except StoppedError as error:
            raise HTTPException(503, str(error)) from error
        return {"status": "ok", "images": asdict(self.engine.load), "requests": self._outcomes}

    def _count(self, outcome: Outcome, images: int, seconds: dict[str, float]) -> None:
        self._outcomes[outcome] += 1
        if self._record is not None:
            self._record(outcome, images, seconds)


def _encode(images: Tensor) -> list[str]:
    return [base64.b64encode(to_png(image)).decode() for image in images]


_ALLOWED = {
    "class": "a class's index or name",
    "n": f"an integer from 1 to {MAX_N}",
    "seed": f"an integer from 0 to {SEEDS - 1}",
    "response_format": "b64_json",
}


def _detail(error: dict[str, Any]) -> dict[str, Any]:
    """A validation error without what was sent, which need not be valid JSON."""
    field, message = error["loc"][-1], str(error["msg"])
    if error["type"] == "extra_forbidden":
        message = f"unknown field; known: {', '.join(_ALLOWED)}"
    elif error["type"] == "json_invalid":
        why = error.get("ctx", {}).get("error", "")
        message = f"the body is not valid JSON at character {field}: {why}"
    elif field == "body":
        message = f'{message}; give a JSON object such as {{"class": 3}}'
    elif error["type"] != "unknown_class" and field in _ALLOWED:
        message = f"{message}; give {_ALLOWED[field]}"
    return {"loc": error["loc"], "msg": message, "type": error["type"]}


def _fields(place: Sequence[int | str]) -> list[str]:
    """The names in the place of an error; a number is a character's position in the body."""
    return [part for part in place[1:] if isinstance(part, str)]


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = [_detail(each) for each in error.errors()]
    fields = _fields(details[0]["loc"])
    return error_response(
        422,
        "; ".join(": ".join([*_fields(each["loc"]), each["msg"]]) for each in details),
        code=details[0]["type"],
        param=fields[0] if fields else None,
        detail=details,
    )


def create_app(service: Callable[[], Service]) -> FastAPI:
    """The API; ``service`` is called on each request, so it may come up after the routes."""
    app = FastAPI(title="srdd", docs_url=None, redoc_url=None)  # those pages load from elsewhere
    app.router.route_class = JsonRoute
    app.add_middleware(BodyLimit)
    app.add_middleware(HeadAsGet)
    app.add_exception_handler(RequestValidationError, _invalid)
    add_handlers(app)
    failures: dict[int | str, dict[str, Any]] = {
        413: {"description": "The body is too large"},
        415: {"description": "The body is not said to be JSON, or it is compressed"},
        500: {"description": "Drawing failed"},
        503: {"description": "The queue is full: wait as long as Retry-After says"},
    }

    @app.post("/v1/images/generations", responses=failures)
    async def generate(body: GenerationRequest) -> GenerationResponse:
        """Draw ``n`` images of a class; image i has the seed of image i of a job."""
        return await service().generate(body)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Class names, settings, limits."""
        return service().models()

    @app.get("/healthz", responses={503: {"description": "Not warm, or no longer alive"}})
    async def healthz() -> dict[str, Any]:
        """Whether images can be drawn, and the load."""
        return service().health()

    return app

"""Errors, HEAD, content types and waits of the API, in process."""

import asyncio
import gzip
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srdd import load_pipeline
from srdd_platform.serving import errors
from srdd_platform.serving.api import Service, create_app
from srdd_platform.serving.engine import Engine
from srdd_platform.serving.errors import MAX_RETRY_S, QueueFullError, error_response, retry_after

PATH = "/v1/images/generations"
BODY = b'{"class": 1, "n": 0}'  # answered 422 where it is read, and nothing is drawn
JSON = "application/json"


@pytest.fixture(scope="module")
def service(tiny_pipeline: Path) -> Service:
    engine = Engine(load_pipeline(tiny_pipeline), max_batch=8, max_images=64)
    engine.warm = True
    return Service(engine)


def ask(service: Service, *requests: dict[str, Any]) -> list[httpx.Response]:
    """What each request is answered, one after the other; ``url`` and ``method`` have defaults."""

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(lambda: service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://srdd") as client:
            return [
                await client.request(**{"method": "POST", "url": PATH} | request)
                for request in requests
            ]

    return asyncio.run(main())


def post(service: Service, content: Any, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(service, {"content": content, "headers": named})[0]


@pytest.mark.parametrize(
    "kind",
    [JSON, "Application/JSON", f"{JSON}; charset=utf-8", f'{JSON};charset="UTF-8"', f"{JSON};",
     f"{JSON}; charset=us-ascii; x=y", "application/vnd.api+json"],
)  # fmt: skip
def test_json_is_read_under_its_names(service: Service, kind: str) -> None:
    assert post(service, BODY, content_type=kind).json()["detail"][0]["loc"] == ["body", "n"]


@pytest.mark.parametrize(
    "kind",
    ["application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "", "application/x-json",
     "text/json", "multipart/form-data; boundary=x", "application/octet-stream", "json", "*/*",
     f"{JSON}, text/plain", f"{JSON}; charset=latin-1", f"{JSON}; charset=utf-16"],
)  # fmt: skip
def test_another_content_type_is_refused_with_the_one_to_give(service: Service, kind: str) -> None:
    """Fastapi#3373: ``curl -d`` says that its body is a form."""
    answer = post(service, BODY, content_type=kind)
    assert answer.status_code == 415
    message = answer.json()["error"]["message"]
    assert f"is {kind or 'missing'}: give the header content-type: application/json" in message
    assert answer.headers["x-should-retry"] == "false"


def test_no_content_type_is_refused_however_the_body_comes(service: Service) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield BODY[:5]
        yield BODY[5:]

    for body in (BODY, chunks()):
        answer = post(service, body)
        assert answer.status_code == 415
        assert "content-type is missing" in answer.json()["detail"]
    assert post(service, chunks(), content_type=JSON).status_code == 422


def test_a_request_without_a_body_is_told_what_to_send(service: Service) -> None:
    answer = post(service, b"")
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == (
        'Field required; give a JSON object such as {"class": 3}'
    )


@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "gzip, identity"])
def test_a_compressed_body_is_refused(service: Service, coding: str) -> None:
    answer = post(service, gzip.compress(BODY), content_type=JSON, content_encoding=coding)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    assert f"content-encoding is {coding}" in answer.json()["detail"]


@given(kind=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
@settings(max_examples=40, deadline=None)
def test_any_content_type_has_one_of_two_answers(service: Service, kind: str) -> None:
    for given_kind in (kind, f"{JSON};{kind}"):
        answer = post(service, BODY, content_type=given_kind)
        assert answer.status_code in (415, 422)
        read = answer.json()["detail"][0] == {
            "loc": ["body", "n"],
            "msg": "Input should be greater than or equal to 1; give an integer from 1 to 64",
            "type": "greater_than_equal",
        }
        assert read == (answer.status_code == 422)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"\xef\xbb\xbf" + BODY, 422, "n: Input should be greater"),  # a byte order mark
        (b'{"class": "caf\xe9"}', 400, "the body is not JSON in UTF-8: 'utf-8' codec can't"),
        (b"[" * 10_000, 400, "the body is not JSON in UTF-8: maximum recursion depth"),
        (b'{"class": ' + b"1" * 5_000 + b"}", 400, "the body is not JSON in UTF-8: Exceeds"),
        (b"{'class': 1}", 422, "the body is not valid JSON at character 1: Expecting property"),
        (b"class=1", 422, "the body is not valid JSON"),
        (b"[]", 422, 'give a JSON object such as {"class": 3}'),
        (b'{"class": 1, "n": 0, "cfg": 2}', 422, "to 64; cfg: unknown field; known: class"),
    ],
)
def test_a_body_that_is_wrong_is_told_why(
    service: Service, body: bytes, status: int, message: str
) -> None:
    answer = post(service, body, content_type=JSON)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b'{"class": "ten"}', "class", "unknown_class"),
        (b'{"class": 1, "n": 0}', "n", "greater_than_equal"),
        (b'{"class": 1, "seed": "7"}', "seed", "int_type"),
        (b'{"class": 1', None, "json_invalid"),
        (b"[]", None, "model_attributes_type"),
    ],
)
def test_an_error_names_its_field_in_both_forms(
    service: Service, body: bytes, param: str | None, code: str
) -> None:
    answer = post(service, body, content_type=JSON).json()
    assert answer.keys() == {"detail", "error"}
    error = answer["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    said = answer["detail"][0]["msg"]
    assert error["message"] == (f"{param}: {said}" if param else said)


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/openapi.json"])
def test_head_is_get_without_the_body(service: Service, path: str) -> None:
    """Fastapi#1773: monitors that ask by HEAD took the server for dead."""
    head, get = ask(service, {"method": "HEAD", "url": path}, {"method": "GET", "url": path})
    assert (head.status_code, head.content) == (200, b"")
    assert len(get.content) > 0
    assert head.headers == get.headers
    assert int(head.headers["content-length"]) == len(get.content)


def test_head_says_when_the_model_is_not_ready(tiny_pipeline: Path) -> None:
    cold = Engine(load_pipeline(tiny_pipeline))
    (head,) = ask(Service(cold), {"method": "HEAD", "url": "/healthz"})
    assert (head.status_code, head.content) == (503, b"")
    assert 1 <= int(head.headers["retry-after"]) <= MAX_RETRY_S


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("OPTIONS", PATH, "POST"),
        ("HEAD", PATH, "POST"),
        ("DELETE", PATH, "POST"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/healthz", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_is_allowed(
    service: Service, method: str, path: str, allow: str
) -> None:
    (answer,) = ask(service, {"method": method, "url": path})
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    assert answer.headers["content-type"] == "application/json"
    if method != "HEAD":
        error = answer.json()["error"]
        assert error["code"] == "method_not_allowed"
        assert error["message"] == f"{path} does not take {method}: use {allow}"


def test_an_unknown_path_is_json(service: Service) -> None:
    (answer,) = ask(service, {"method": "GET", "url": "/v1/image/generations"})
    assert answer.status_code == 404
    message = "there is nothing at /v1/image/generations: GET /openapi.json lists the paths"
    assert answer.json() == {
        "detail": message,
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": None,
            "code": "not_found",
        },
    }


def test_a_bug_is_told_without_a_traceback(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(service.engine, "generate", broken)
    answer = post(service, b'{"class": 1}', content_type=JSON)
    assert answer.status_code == 500
    assert answer.json()["detail"] == "internal error (KeyError): the server's log says more"
    assert "x-should-retry" not in answer.headers


Ask = Callable[[Engine], Awaitable[Any]]


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (FloatingPointError("non-finite logits"), 500, "sampling_failed", "false"),
        (torch.OutOfMemoryError("CUDA out of memory"), 503, "out_of_memory", None),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 503, "out_of_memory", None),
        (RuntimeError("a shape"), 500, "sampling_failed", "false"),
    ],
)
def test_a_failure_says_whether_a_repeat_fails_alike(
    tiny_pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    code: str,
    retry: str | None,
) -> None:
    engine = Engine(load_pipeline(tiny_pipeline))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine, "_turn", fail)
    service = Service(engine)
    requests = [{"json": {"class": 1, **more}} for more in ({"seed": 1}, {})]
    seeded, drawn = ask(service, *requests)
    assert (seeded.status_code, seeded.json()["error"]["code"]) == (status, code)
    assert seeded.headers.get("x-should-retry") == retry
    assert ("retry-after" in seeded.headers) == (status == 503)
    assert drawn.status_code == status
    assert "x-should-retry" not in drawn.headers  # the next one has another seed


def test_a_failure_in_company_is_worth_a_repeat(tiny_pipeline: Path) -> None:
    pipeline = load_pipeline(tiny_pipeline)
    pipeline.transformer.class_emb.weight[3] = float("nan")

    async def main() -> list[BaseException]:
        engine = Engine(pipeline)
        both = [engine.generate([label], [0]) for label in (3, 2)]
        return await asyncio.gather(*both, return_exceptions=True)

    for error in asyncio.run(main()):
        assert isinstance(error, errors.SamplingError)
        assert not error.repeats


@given(soonest=st.floats(0, 1e6), latest=st.floats(0, 1e6))
def test_a_wait_is_whole_bounded_and_spread(soonest: float, latest: float) -> None:
    waits = {retry_after(soonest, latest) for _ in range(60)}
    assert all(type(wait) is int and 1 <= wait <= MAX_RETRY_S for wait in waits)
    assert min(waits) >= min(round(soonest), MAX_RETRY_S // 2)
    assert len(waits) > 1


def test_a_wait_follows_the_load(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, int]] = []
    monkeypatch.setattr(random, "randint", lambda low, high: drawn.append((low, high)) or low)
    engine = Engine(load_pipeline(tiny_pipeline), max_batch=4, max_images=10)
    engine._busy_s, engine._finished = 8.0, 4  # 2 s an image

    async def main() -> None:
        inside = asyncio.ensure_future(engine.generate([1] * 9, range(9)))
        await asyncio.sleep(0)
        for n in (2, 6, 10, 40):
            with pytest.raises(QueueFullError):
                await engine.generate([1] * n, range(n))
        inside.cancel()
        await engine.close()

    asyncio.run(main())
    assert drawn == [(2, 18), (10, 20), (18, 36), (18, 36)]


@pytest.mark.parametrize(
    ("status", "retry"),
    [(400, "false"), (404, "false"), (408, None), (409, None), (413, "false"), (415, "false"),
     (422, "false"), (429, None), (500, None), (503, None)],
)  # fmt: skip
def test_the_status_decides_whether_to_repeat(status: int, retry: str | None) -> None:
    answer = error_response(status, "é")
    assert answer.headers.get("x-should-retry") == retry
    assert ("retry-after" in answer.headers) == (status == 503)
    body = json.loads(bytes(answer.body).decode("ascii"))
    assert body["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert body["detail"] == body["error"]["message"] == "é"

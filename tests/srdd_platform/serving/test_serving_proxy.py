"""The middleware of Serve's proxy, around stand-ins for the proxy."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srdd_platform.serving.proxy import IN_PROGRESS, PIECE, VARIABLES, InProgress, middlewares


def wrapped(app: ASGIApp) -> Any:
    """``app`` as Serve wraps it: each middleware around the one before."""
    for each in middlewares():
        app = each.cls(app, *each.args, **each.kwargs)
    return app


def get(app: ASGIApp) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(wrapped(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://srdd") as client:
            return await client.get("/")

    return asyncio.run(main())


def text(status: int, message: str, **headers: str) -> Response:
    return PlainTextResponse(message, status, headers)


@pytest.mark.parametrize(
    ("plain", "status", "message"),
    [
        (text(404, "Path '/x' not found. Ping http://.../-/routes"), 503, "no model is served now"),
        (text(503, "Request dropped due to backpressure"), 503, "Request dropped due to back"),
        (text(408, "Request 1 timed out after 2.0s."), 408, "Request 1 timed out after 2.0s."),
        (text(500, "Internal Server Error"), 500, "Internal Server Error"),
        (text(503, "é"), 503, "é"),
    ],
)
def test_a_plain_error_becomes_json(plain: Response, status: int, message: str) -> None:
    plain.headers["X-Request-ID"] = "7"
    plain.headers["Retry-After"] = "10000"
    answer = get(plain)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert message in answer.json()["error"]["message"]
    assert answer.json()["detail"] == answer.json()["error"]["message"]
    assert answer.headers["x-request-id"] == "7"
    waits = answer.headers.get_list("retry-after")
    assert len(waits) == (status == 503)
    assert all(1 <= int(wait) <= 120 for wait in waits)
    assert "x-should-retry" not in answer.headers


def test_a_server_that_stops_closes_its_connections() -> None:
    assert get(text(404, "Path '/' not found.")).headers["connection"] == "close"
    assert "connection" not in get(text(503, "busy")).headers


@pytest.mark.parametrize(
    "answer",
    [JSONResponse({"a": 1}, 404), JSONResponse({"a": 1}, 500), text(200, "success"),
     Response(b"", 204), Response(bytes(range(256)) * 1000, 200)],
)  # fmt: skip
def test_other_answers_pass_unchanged(answer: Response) -> None:
    got = get(answer)
    assert (got.status_code, got.content) == (answer.status_code, bytes(answer.body))
    assert got.headers.raw == answer.raw_headers


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve, where the replica that had the request is killed."""


def test_a_lost_replica_is_json_and_worth_a_repeat() -> None:
    answer = get(silent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
    assert 1 <= int(answer.headers["retry-after"]) <= 2


@pytest.mark.parametrize(("kept", "status"), [(False, 500), (True, 500)])
def test_a_failure_of_the_proxy_is_json(kept: bool, status: int) -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        if kept:
            await send(
                {
                    "type": "http.response.start",
                    "status": 503,
                    "headers": [(b"content-type", b"text/plain")],
                }
            )
        raise KeyError("x")

    answer = get(fails)
    assert answer.status_code == status
    assert answer.json()["detail"] == "internal error (KeyError): the log says more"


def test_a_header_that_is_not_utf8_is_the_client_s_fault() -> None:
    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        b"\xff".decode()

    answer = get(reads)
    assert answer.status_code == 400
    assert "must be UTF-8" in answer.json()["detail"]


def test_an_answer_cut_in_the_middle_is_not_given_a_second_start() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("x")

    with pytest.raises(KeyError):
        get(fails)


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE])
def test_a_request_counts_until_its_last_piece_has_left(size: int) -> None:
    body = bytes(size)
    app = InProgress(Response(body))
    sent: list[Message] = []
    counts: list[int] = []

    async def send(message: Message) -> None:
        sent.append(message)
        answer: list[Message] = []
        probe = {"type": "http", "path": IN_PROGRESS, "method": "GET", "headers": []}

        async def keep(message: Message) -> None:
            answer.append(message)

        await app(probe, receive, keep)
        counts.append(json.loads(answer[1]["body"])["requests"])

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    asyncio.run(app({"type": "http", "path": "/", "method": "GET", "headers": []}, receive, send))
    assert b"".join(message.get("body", b"") for message in sent) == body
    assert [message.get("more_body", False) for message in sent[1:-1]] == [True] * (len(sent) - 2)
    assert not sent[-1].get("more_body", False)
    assert max(len(message.get("body", b"")) for message in sent) <= PIECE
    assert counts == [1] * len(sent)
    assert app.requests == 0


def test_a_request_that_fails_counts_no_longer() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("x")

    app = InProgress(fails)
    nothing: Callable[..., Any] = lambda *_: None  # noqa: E731
    with pytest.raises(KeyError):
        asyncio.run(app({"type": "http", "path": "/"}, nothing, nothing))
    assert app.requests == 0


def test_the_proxy_loads_neither_torch_nor_ray() -> None:
    (name,) = VARIABLES.values()
    module, function = name.rsplit(".", 1)
    code = (
        f"import sys, {module} as m; m.{function}(); print({{'torch', 'ray'}} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"

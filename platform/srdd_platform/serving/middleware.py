"""What is done to a request before its body is read: HEAD, the body's size, type and coding."""

from collections.abc import Callable, Coroutine
from email.message import Message as Headers
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srdd_platform.serving.errors import error_response

MAX_BODY = 16 * 1024  # bytes
_TOO_LARGE = f"the body may have at most {MAX_BODY} bytes"
_UTF8 = ("utf-8", "utf8", "us-ascii")


class HeadAsGet:
    """ASGI middleware that answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await self.app({**scope, "method": "GET"}, receive, without_body)


class BodyLimit:
    """ASGI middleware that answers 413 to a body that is too large, announced or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its body."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(value.isdigit() and int(value) > MAX_BODY for value in lengths):
            answer = error_response(413, _TOO_LARGE, headers={"Connection": "close"})
            return await answer(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise HTTPException(413, _TOO_LARGE)
            return message

        await self.app(scope, counted, send)


class JsonRoute(APIRoute):
    """A route whose body must say that it is JSON.

    Without that rule any web page could let its visitor's browser post to this server: for other
    content types, browsers send the request without asking the server first.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, behind the check."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def checked(request: Request) -> Response:
            _require_json(request)
            return await handler(request)

        return checked


def _require_json(request: Request) -> None:
    """Do nothing where a body can be read as JSON, or there is none.

    Raises:
        HTTPException: 415, naming the header to give.
    """
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(
            415,
            f"the body's content-encoding is {headers['content-encoding']}: send it as it is, "
            "without that header",
            {"Accept-Encoding": "identity"},
        )
    given = headers.get("content-type", "")[:80]
    parsed = Headers()
    parsed["content-type"] = given
    main, charset = parsed.get_content_maintype(), parsed.get_content_charset("utf-8")
    json = main == "application" and f"+{parsed.get_content_subtype()}".endswith("+json")
    if not json or charset not in _UTF8:
        raise HTTPException(
            415,
            f"the body's content-type is {given or 'missing'}: "
            "give the header content-type: application/json, and JSON in UTF-8",
        )

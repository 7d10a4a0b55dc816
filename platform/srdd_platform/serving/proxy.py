"""What Ray Serve's HTTP proxy is given: its plain-text errors as JSON, and a count of requests.

The proxy imports this module in a process of its own, so it loads neither torch nor the models.
``VARIABLES`` are the environment that makes the proxy call :func:`middlewares` as it starts.
"""

import logging

from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from srdd_platform.serving.errors import error_response, retry_after

IN_PROGRESS = "/-/in_progress"  # beside Serve's own /-/healthz and /-/routes
PIECE = 64 * 1024  # bytes of a body passed on at once
_TYPE, _LENGTH, _RETRY = b"content-type", b"content-length", b"retry-after"


def middlewares() -> list[Middleware]:
    """The proxy's middleware, the innermost first."""
    return [Middleware(JsonErrors), Middleware(InProgress)]


VARIABLES = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.{middlewares.__name__}"}


class InProgress:
    """ASGI middleware that counts the requests whose answer has not left yet.

    Bodies are passed on in pieces, because the server waits for a slow client between two pieces.
    A request so counts until all but the last piece have left.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the count, or count a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] == IN_PROGRESS:
            return await JSONResponse({"requests": self.requests})(scope, receive, send)

        async def in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            *pieces, last = [body[i : i + PIECE] for i in range(0, len(body), PIECE)] or [b""]
            for piece in pieces:
                await send({"type": message["type"], "body": piece, "more_body": True})
            await send({**message, "body": last} if pieces else message)

        self.requests += 1
        try:
            await self.app(scope, receive, in_pieces)
        finally:
            self.requests -= 1


class JsonErrors:
    """ASGI middleware that answers Serve's own errors in the form of the API's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        passed_on = False
        kept: list[Message] = []  # of a plain-text error

        async def sort(message: Message) -> None:
            nonlocal passed_on
            if kept or _is_plain_error(message):
                kept.append(message)
                return
            passed_on = True
            await send(message)

        try:
            await self.app(scope, receive, sort)
        except Exception as error:
            if passed_on:
                raise
            return await _raised(error)(scope, receive, send)
        if not passed_on:
            await (_plain(kept) if kept else _lost())(scope, receive, send)


def _is_plain_error(message: Message) -> bool:
    """Whether a message starts an error in plain text."""
    if message["type"] != "http.response.start" or message["status"] < 400:
        return False
    return bool(dict(message["headers"]).get(_TYPE, b"").startswith(b"text/plain"))


def _plain(kept: list[Message]) -> Response:
    """A plain-text error in JSON, with its other headers."""
    start, *rest = kept
    text = b"".join(message.get("body", b"") for message in rest).decode(errors="replace")
    if start["status"] == 404:  # the application has the route /: Serve finds it, or it is not up
        answer = error_response(503, "no model is served now: the server starts or stops")
        answer.headers["Connection"] = "close"
    else:
        answer = error_response(start["status"], text)
    own = (_TYPE, _LENGTH, _RETRY)
    answer.raw_headers += [(name, value) for name, value in start["headers"] if name not in own]
    return answer


def _lost() -> Response:
    """The answer where Serve sends none: the replica that had the request has ended."""
    message = "the process that had this request has ended: send the request again"
    return error_response(503, message, code="replica_lost", wait_s=retry_after(1))


def _raised(error: Exception) -> Response:
    """The answer where Serve itself raised."""
    if isinstance(error, UnicodeDecodeError):  # it reads some headers as UTF-8
        return error_response(400, "the headers of the request must be UTF-8")
    logging.getLogger("ray.serve").error("Serve's proxy failed", exc_info=error)
    return error_response(500, f"internal error ({type(error).__name__}): the log says more")

"""How the API answers what its routes raise, a bad field of the body aside."""

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException as HTTPStatusError
from starlette.responses import Response

from srdd_platform.core.out_of_memory import is_out_of_memory
from srdd_platform.serving.errors import (
    QueueFullError,
    SamplingError,
    StoppedError,
    error_response,
)


def add_handlers(app: FastAPI) -> None:
    """Have ``app`` answer every exception with :func:`error_response`."""
    app.add_exception_handler(HTTPStatusError, _refused)
    app.add_exception_handler(Exception, _bug)
    for error in (QueueFullError, StoppedError, SamplingError):
        app.add_exception_handler(error, _failed)


async def _refused(request: Request, error: Exception) -> Response:
    """What FastAPI or a route answers by status."""
    assert isinstance(error, HTTPStatusError)
    headers, message = dict(error.headers or {}), str(error.detail)
    if error.status_code == 400:
        message = f"the body is not JSON in UTF-8: {error.__cause__ or message}"
    if "GET" in headers.get("Allow", ""):
        headers["Allow"] += ", HEAD"
    if error.status_code == 404:
        message = f"there is nothing at {request.url.path}: GET /openapi.json lists the paths"
    elif error.status_code == 405:
        message = f"{request.url.path} does not take {request.method}: use {headers.get('Allow')}"
    return error_response(error.status_code, message, headers=headers)


async def _failed(request: Request, error: Exception) -> Response:
    """What the engine could not do."""
    if isinstance(error, QueueFullError):
        return error_response(503, str(error), code="queue_full", wait_s=error.retry_after)
    if isinstance(error, StoppedError):
        return error_response(503, str(error), code="stopped")
    assert isinstance(error, SamplingError)
    if error.__cause__ is not None and is_out_of_memory(error.__cause__):
        return error_response(503, str(error), code="out_of_memory")
    return error_response(500, str(error), code="sampling_failed", repeats=error.repeats)


async def _bug(request: Request, error: Exception) -> Response:
    message = f"internal error ({type(error).__name__}): the server's log says more"
    return error_response(500, message)

"""What goes wrong while serving, and the one form in which every error is answered.

An error's body is JSON with two keys: ``detail``, in FastAPI's form, and ``error``, in that of
OpenAI's API (``message``, ``type``, ``param``, ``code``). The headers say whether and when the
same request is worth sending again. Ray Serve's HTTP proxy uses this module too, so it imports
neither torch nor the models.
"""

import json
import random
from collections.abc import Mapping

from starlette.responses import Response

MAX_RETRY_S = 120  # clients of OpenAI's API ignore longer waits
RESTART_S = 10  # seconds that a replica takes to start again, roughly
_WORTH_REPEATING = (408, 409, 429)  # of the 4xx, by what their status means
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    500: "internal_error",
    503: "unavailable",
}


class QueueFullError(Exception):
    """The queue is full; ``retry_after`` whole seconds should make room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full: try again in {retry_after} s")
        self.retry_after = retry_after


class StoppedError(Exception):
    """The loop has ended, or was closed: nothing more is drawn until it is started anew."""


class SamplingError(Exception):
    """A batch failed; the message is one line and names the reason.

    Args:
        message: the reason.
        repeats: the same request would fail alike, since it alone was in the batch.
    """

    def __init__(self, message: str, *, repeats: bool) -> None:
        super().__init__(message)
        self.repeats = repeats


def retry_after(soonest_s: float, latest_s: float = 0.0) -> int:
    """A wait in whole seconds, drawn at random so that clients do not come back all at once.

    Args:
        soonest_s: when there should be room for one client.
        latest_s: when there should be room for all; at least twice ``soonest_s`` is taken.

    Returns:
        A number from 1 to ``MAX_RETRY_S``.
    """
    low = min(max(1, round(soonest_s)), MAX_RETRY_S // 2)
    high = min(max(2 * low, round(latest_s)), MAX_RETRY_S)
    return random.randint(low, high)


def error_response(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    detail: object = None,
    repeats: bool | None = None,
    wait_s: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as this server answers it.

    Args:
        status: of HTTP.
        message: one line: what is wrong and what to do.
        code: a word for programs to compare, such as ``queue_full``; None takes the status's.
        param: the field or header that is wrong.
        detail: FastAPI's list of errors; None repeats the message.
        repeats: the same request would fail alike; None decides by the status.
        wait_s: seconds after which to send the request again; each 503 has some.
        headers: further ones.
    """
    if repeats is None:
        repeats = 400 <= status < 500 and status not in _WORTH_REPEATING
    if wait_s is None and status == 503:
        wait_s = retry_after(RESTART_S)
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}
    body = {"detail": message if detail is None else detail, "error": error}
    answer = Response(json.dumps(body), status, headers, "application/json")  # ASCII
    if repeats:
        answer.headers["x-should-retry"] = "false"
    if wait_s is not None:
        answer.headers["Retry-After"] = str(wait_s)
    return answer

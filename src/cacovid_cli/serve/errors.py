"""Refusals in OpenAI's form: one line under 300 characters."""

from typing import Any

from fastapi.responses import JSONResponse

_LONGEST = 280  # characters

_TYPES = {401: "authentication_error", 404: "not_found_error", 500: "server_error", 503: "overloaded_error"}


class Refused(Exception):
    """What a client is told instead of an answer.

    Args:
        message: value, reason, remedy.
        status: of HTTP.
        param: the field of the request that is wrong.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None):
        super().__init__(message)
        self.status, self.param = status, param


def error_body(error: Refused) -> dict[str, Any]:
    """`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`."""
    message = " ".join(str(error).split())
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    kind = _TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": error.param, "code": error.status}}


def error_response(error: Refused) -> JSONResponse:
    """Return the whole answer."""
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)

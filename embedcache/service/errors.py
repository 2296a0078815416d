"""ServiceProblem: what a request is refused with, and the form that each interface gives it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from embedcache.errors import (
    CorpusError,
    EmbedCacheError,
    EncodingError,
    KeyNotFoundError,
    ModuleError,
    ServiceError,
    StoreError,
    UnknownNameError,
)


class ServiceProblem(ServiceError):  # noqa: N818 - as RFC 9457 calls it
    """A request that is answered with an error: the one exception that routes raise.

    Args:
        status: HTTP status.
        code: A word for programs, such as ``"not_stored"``; never changes for one cause.
        message: A sentence for people; names no text of the request.
        retry_after_s: After how many seconds the same request may succeed.
        headers: More headers of the answer.
        cause: What the log says instead of the message: it may name files, which are no matter
            of a client's.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        self.cause = cause or message
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException's own would call __init__ with the message alone.
        return _problem, (
            *(self.status, self.code, self.message),
            *(self.retry_after_s, self.headers, self.cause),
        )


def _problem(
    status: int,
    code: str,
    message: str,
    retry_after_s: float | None,
    headers: Mapping[str, str],
    cause: str,
) -> ServiceProblem:
    return ServiceProblem(
        status, code, message, retry_after_s=retry_after_s, headers=headers, cause=cause
    )


_STATUSES: tuple[tuple[type[EmbedCacheError], int, str], ...] = (
    # Narrower ones first: a KeyNotFoundError is a StoreError too.
    (KeyNotFoundError, 404, "not_stored"),
    (UnknownNameError, 404, "unknown_name"),
    (CorpusError, 422, "bad_text"),
    (EncodingError, 422, "not_encodable"),
    (ModuleError, 503, "module_unavailable"),
    (StoreError, 503, "store_unavailable"),
)


_FAULTS = {
    "module_unavailable": "the view's module cannot be used here",
    "module_unfit": "the view's module does not compute the same vectors twice",
    "run_unavailable": "the run's files cannot be used",
    "store_unavailable": "the store cannot be used",
    "internal": "the service failed at this",
}
"""By the code of what is no fault of a request's."""


def fault(status: int, code: str, error: Exception) -> ServiceProblem:
    """A problem of the service's own, whose reason only its log tells."""
    message = f"{_FAULTS[code]}; the service's log tells why, under the request's id"
    return ServiceProblem(status, code, message, cause=str(error))


def problem_of(error: EmbedCacheError) -> ServiceProblem:
    """What a request is answered with that met this error; 500 for one that is not expected."""
    if isinstance(error, ServiceProblem):
        return error
    for kind, status, code in _STATUSES:
        if isinstance(error, kind):
            if status >= 500:
                return fault(status, code, error)
            return ServiceProblem(status, code, str(error))
    return fault(500, "internal", error)


def problem_body(problem: ServiceProblem, path: str) -> bytes:
    """The answer's JSON, in the form of the interface that the path belongs to."""
    return orjson.dumps(_form_of_path(path)(problem), option=orjson.OPT_NON_STR_KEYS)


def _openai_form(problem: ServiceProblem) -> dict[str, Any]:
    return {
        "error": {
            "message": problem.message,
            "type": _OPENAI_TYPES.get(problem.status, _openai_type(problem.status)),
            "param": None,
            "code": problem.code,
        }
    }


_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def _openai_type(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request_error"


def _tei_form(problem: ServiceProblem) -> dict[str, Any]:
    kinds = {422: "validation", 413: "validation", 429: "overloaded", 503: "unhealthy"}
    default = "backend" if problem.status >= 500 else "validation"
    return {"error": problem.message, "error_type": kinds.get(problem.status, default)}


def _tf_serving_form(problem: ServiceProblem) -> dict[str, Any]:
    return {"error": problem.message}


def _own_form(problem: ServiceProblem) -> dict[str, Any]:
    return {"error": {"code": problem.code, "message": problem.message}}


_MODEL = "/v1/models/"
_TF_SERVING_VERBS = (":predict", ":classify", ":regress")
_TEI_PATHS = frozenset({"/", "/embed", "/embed_all", "/tokenize", "/info"})


def _form_of_path(path: str) -> Any:
    """OpenAI's, text-embeddings-inference's, TensorFlow Serving's or the service's own form."""
    if path in _TEI_PATHS:
        return _tei_form
    if path.startswith(_MODEL):
        below = path.removeprefix(_MODEL)
        # A view has nothing below it; the state of a run is at a path that OpenAI has, too.
        is_of_run = "/" in below or below.endswith(_TF_SERVING_VERBS)
        return _tf_serving_form if is_of_run else _openai_form
    if path in ("/v1/embeddings", "/v1/models"):
        return _openai_form
    return _own_form

"""What each operation takes and gives, as the OpenAPI description shows it.

Requests are checked against these models. Answers are not: they are written by orjson, and the
tests compare them with what is told here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

MAX_DIMENSIONS = 1 << 20
"""More than any view has; so that the description names no number that JSON cannot hold."""


def _whole(value: Any) -> Any:
    """A whole number as an int: to JSON, 1.0 is 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Dimensions = Annotated[int, Field(ge=1, le=MAX_DIMENSIONS), BeforeValidator(_whole)]

_ONE_OR_MORE_TEXTS = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
    ],
    "description": "One text, or a list of them (up to the server's `max_texts`: 32 by default).",
}
_TEXTS = {
    "type": "array",
    "items": {"type": "string"},
    "minItems": 1,
    "description": "The texts (up to the server's `max_texts`: 32 by default).",
}

# Checked by `bodies.texts_of`, which knows the server's limits and has clearer words.
OneOrMoreTexts = Annotated[Any, WithJsonSchema(_ONE_OR_MORE_TEXTS)]
Texts = Annotated[Any, WithJsonSchema(_TEXTS)]

Key = Annotated[str, Field(pattern="^[0-9a-f]{32}$", description="16 bytes: a text's BLAKE2b.")]
Matrix = list[list[float]]


class ForeignRequest(BaseModel):
    """A request of an interface that others have made: fields that are not known are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class OwnRequest(BaseModel):
    """A request of the service's own interface: a field that is not known is refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


# The service's own interface


class FeaturesRequest(OwnRequest):
    """Texts whose features are wanted."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={"examples": [{"texts": ["a gripping film", "not for me"]}]},
    )

    texts: Texts
    view: str | None = Field(
        None, description="Fingerprint of a view, its beginning, or an alias; null: the default."
    )


class Feature(BaseModel):
    """The features of one text."""

    key: Key
    num_tokens: int = Field(ge=0, description="Rows of `values`.")
    truncated: bool = Field(description="Whether the text was cut at the view's longest length.")
    values: Matrix = Field(
        description="(num_tokens, dim) numbers; read as float32 they are what is stored."
    )


class FeaturesAnswer(BaseModel):
    """The features of texts, in their order."""

    view: str = Field(description="Fingerprint of the view.")
    dim: int = Field(ge=1)
    dtype: Literal["float16", "float32"]
    features: list[Feature]
    hits: int = Field(ge=0, description="Texts that were stored.")
    misses: int = Field(ge=0, description="Texts that were not.")


class ViewAnswer(BaseModel):
    """A view: a module with all settings that change its numbers."""

    fingerprint: str
    alias: str | None
    module: str = Field(description="The module's handle; empty if it was lost.")
    preprocess: str = Field(description="Its preprocessor's; empty without one.")
    default: bool = Field(description="Whether requests that name no view mean it.")
    texts: int = Field(ge=0)
    tokens: int = Field(ge=0)
    bytes: int = Field(ge=0)
    shards: int = Field(ge=0)
    view: dict[str, Any] = Field(description="Its fields, of which the fingerprint is the hash.")


class ViewsAnswer(BaseModel):
    """The views that are served."""

    views: list[ViewAnswer]


class DatasetAnswer(BaseModel):
    """A version of a registered corpus."""

    name: str
    version: str
    texts: int = Field(ge=0)
    unique: int = Field(ge=0, description="Distinct ones among them.")
    created_at: float = Field(description="In seconds since 1970.")
    newest_view: str | None = Field(description="Of the view that it was last built under.")


class DatasetsAnswer(BaseModel):
    """All versions of all datasets, oldest first."""

    datasets: list[DatasetAnswer]


class RunAnswer(BaseModel):
    """A trained run."""

    run: str
    dataset: str
    version: str = Field(description="Of the dataset.")
    view: str = Field(description="Fingerprint of the view whose features it takes.")
    labels: list[str] = Field(description="In sorted order, as the probabilities are.")
    dev: dict[str, Any] | None = Field(description="Metrics on the dev split.")
    test: dict[str, Any] | None = Field(description="Metrics on the test split.")


class RunsAnswer(BaseModel):
    """The runs that predict."""

    runs: list[RunAnswer]


class OwnFault(BaseModel):
    """What went wrong."""

    code: str = Field(description="A word for programs.")
    message: str = Field(description="A sentence for people.")


class OwnError(BaseModel):
    """An error."""

    error: OwnFault


# OpenAI


class EmbeddingsRequest(ForeignRequest):
    """Texts whose embeddings are wanted."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        json_schema_extra={
            "examples": [{"model": "VIEW", "input": ["a gripping film", "not for me"]}]
        },
    )

    input: OneOrMoreTexts
    model: str | None = Field(
        None,
        description="Alias or fingerprint of a view: see `GET /v1/models`. Else: the default one.",
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`base64`: little-endian float32. Default: `float`."
    )
    dimensions: Dimensions | None = Field(
        None, description="Only the view's own width: vectors are not shortened."
    )
    user: str | None = Field(None, description="Ignored.")


class Embedding(BaseModel):
    """The embedding of one text."""

    object: Literal["embedding"]
    index: int = Field(ge=0)
    embedding: list[float] | str


class Usage(BaseModel):
    """Rows of the texts, which is what a token is here."""

    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class EmbeddingsAnswer(BaseModel):
    """The embeddings of texts, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A view, as OpenAI's interface names it."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Always 0: a view is what it is, whenever it was made.")
    owned_by: str = Field(description="The module's handle.")


class ModelsAnswer(BaseModel):
    """The views that are served."""

    object: Literal["list"]
    data: list[Model]


class OpenAIFault(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error, in OpenAI's form."""

    error: OpenAIFault


_MEANINGS = {
    401: "No API key, or one that is not known.",
    403: "The API key does not have the scope that this needs.",
    404: "No such thing; or texts that are not stored, where none may be computed.",
    406: "None of the types in `Accept` can be had.",
    408: "The body did not come in time.",
    413: "The body is too large, or asks for too much.",
    415: "The body is compressed.",
    422: "The body is not what is wanted here.",
    429: "Too many texts wait to be computed; `Retry-After` tells when to come again.",
    500: "The service failed at this; its log tells where.",
    503: "The service is ending, or the store or the module cannot be used.",
    504: "Not answered in time. What is being computed goes on and is kept.",
}

_ANY_REQUEST = (401, 403, 408, 413, 415, 500, 503, 504)


def error_answers(
    form: type[BaseModel], *statuses: int, example: Mapping[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """How an operation's errors are described: those that any request may meet, and its own."""
    answers: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*_ANY_REQUEST, *statuses}):
        answers[status] = {"model": form, "description": _MEANINGS[status]}
        if example is not None:
            answers[status]["content"] = {"application/json": {"example": dict(example)}}
    return answers

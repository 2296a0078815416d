"""What the interfaces of text-embeddings-inference and TensorFlow Serving take and give.

As `embedcache.service.schemas`: requests are checked against these models, answers are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from embedcache.service.schemas import Dimensions, ForeignRequest, Matrix, OneOrMoreTexts

# text-embeddings-inference

_Direction = Literal["left", "right", "Left", "Right"]


class EmbedAllRequest(ForeignRequest):
    """Texts, each of whose tokens is wanted."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        json_schema_extra={"examples": [{"inputs": "a gripping film"}]},
    )

    inputs: OneOrMoreTexts
    truncate: bool | None = Field(
        None, description="false: refuse a text that the view cuts. Default: cut it."
    )
    truncation_direction: _Direction | None = Field(
        None, description="Texts are cut on the right; `left` is refused where one was cut."
    )
    prompt_name: None = Field(None, description="Refused: no view has prompts.")


class EmbedRequest(EmbedAllRequest):
    """Texts whose embeddings are wanted."""

    normalize: bool | None = Field(
        None, description="Whether to divide each vector by its length. Default: true."
    )
    dimensions: Dimensions | None = Field(
        None, description="Only the view's own width: vectors are not shortened."
    )


class TokenizeRequest(ForeignRequest):
    """Texts whose tokens are wanted."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        json_schema_extra={"examples": [{"inputs": "a gripping film"}]},
    )

    inputs: OneOrMoreTexts
    add_special_tokens: bool | None = Field(
        None, description="false: leave special tokens out, where the view keeps them."
    )
    prompt_name: None = Field(None, description="Refused: no view has prompts.")


class Token(BaseModel):
    """A token, which is a row of the features."""

    id: int | None = Field(description="In the module's vocabulary; null if it does not tell.")
    text: str = Field(description="What it stands for; empty if the module does not tell.")
    special: bool = Field(description="Whether it stands for nothing in the text.")
    start: int | None = Field(description="First character of it in the text.")
    stop: int | None = Field(description="The character behind its last one.")


class InfoAnswer(BaseModel):
    """The default view, as text-embeddings-inference describes its model."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str = Field(description="The module's handle.")
    model_sha: str = Field(description="Digest of the module's files.")
    model_dtype: str = Field(description="The storage dtype.")
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int = Field(description="Rows of a text at most.")
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    max_text_bytes: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


class TeiError(BaseModel):
    """An error, in the form of text-embeddings-inference."""

    error: str
    error_type: str


# TensorFlow Serving

_ENCODED = {
    "type": "object",
    "properties": {"b64": {"type": "string", "format": "byte"}},
    "required": ["b64"],
    "additionalProperties": False,
}
_TEXT = {"anyOf": [{"type": "string"}, _ENCODED]}
_TEXT_OR_TEXTS = {"anyOf": [*_TEXT["anyOf"], {"type": "array", "items": _TEXT, "minItems": 1}]}


def _named(text: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object that names its one input."""
    return {
        "type": "object",
        "properties": {"text": text},
        "required": ["text"],
        "additionalProperties": False,
    }


_INSTANCE = {"anyOf": [*_TEXT["anyOf"], _named(_TEXT)]}
_INSTANCES = {"type": "array", "items": _INSTANCE, "minItems": 1}
_INPUTS = {"anyOf": [*_TEXT_OR_TEXTS["anyOf"], _named(_TEXT_OR_TEXTS)]}


class PredictRequest(ForeignRequest):
    """Texts to label: either by rows or by columns."""

    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        json_schema_extra={
            "examples": [{"instances": ["a gripping film"]}],
            "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
        },
    )

    instances: Annotated[Any, WithJsonSchema(_INSTANCES)] = Field(
        None, description='By rows: `["a text"]` or `[{"text": "a text"}]`.'
    )
    inputs: Annotated[Any, WithJsonSchema(_INPUTS)] = Field(
        None, description='By columns: `["a text"]` or `{"text": ["a text"]}`.'
    )
    signature_name: Literal["serving_default", ""] | None = Field(
        None, description="There is one signature: `serving_default`."
    )


class PredictionsAnswer(BaseModel):
    """Probabilities by rows."""

    predictions: Matrix = Field(
        description="A row for each text: the probability of each label, in their sorted order."
    )


class OutputsAnswer(BaseModel):
    """Probabilities by columns."""

    outputs: Matrix = Field(
        description="A row for each text: the probability of each label, in their sorted order."
    )


class VersionState(BaseModel):
    """The state of a run."""

    version: str
    state: Literal["AVAILABLE"]
    status: dict[str, str]


class StatusAnswer(BaseModel):
    """The state of a run, as TensorFlow Serving tells it."""

    model_config = ConfigDict(protected_namespaces=())

    model_version_status: list[VersionState]


class MetadataAnswer(BaseModel):
    """A run's signature, and its labels."""

    model_config = ConfigDict(protected_namespaces=())

    model_spec: dict[str, str]
    metadata: dict[str, Any]


class TFServingError(BaseModel):
    """An error, in TensorFlow Serving's form."""

    error: str

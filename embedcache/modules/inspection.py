"""What a SavedModel holds, and what a build would make of it, for a person to read.

Signatures and calls are read from the SavedModel's protocol buffer, which tells them without
loading the module; what is said of rows comes from the facts of its probe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import ModuleError
from embedcache.modules.bag_of_words import OWN_TOKENIZER
from embedcache.modules.facts import (
    BAG_OF_WORDS,
    ELMO,
    PREPROCESSED_ENCODER,
    PREPROCESSOR,
    SENTENCE_ENCODER,
    SEQUENCE_KINDS,
    TF1_BERT,
    ModuleFacts,
)
from embedcache.modules.layers import ALL, MEAN, choose_layers, layer_names
from embedcache.modules.saved_model import load_saved_model, read_meta_graphs, served_graph
from embedcache.modules.sentence_encoder import SENTENCE_PIECES
from embedcache.modules.settings import CONTEXT_WORDS_DEFAULT
from embedcache.view import GRANULARITIES, FeatureView

_TF1_HUB_FILE = "tfhub_module.pb"
_ROOT_CALL = "__call__"
# TensorFlow's own entries among the signatures: they are run once, when it is loaded.
_INTERNAL = "__saved_model"

_ROWS = {
    BAG_OF_WORDS: "the vector of one token",
    SENTENCE_ENCODER: "the vector of one sentence",
    PREPROCESSED_ENCODER: "{output} of one word piece",
    TF1_BERT: "{output} of one word piece",
    ELMO: "{output} of one word",
}
_TOKENIZERS = {
    OWN_TOKENIZER: "the module's own tokenize",
    "space": "at single spaces; between two of them stands an empty token",
    "space-nonempty": "at spaces",
    "whitespace": "at white space",
    "space-words": "at spaces; tokens that are punctuation only are left out",
    "whitespace-words": "at white space; tokens that are punctuation only are left out",
    "parts": "the module's own, inside it; embedcache cuts texts into sentences, or words",
    SENTENCE_PIECES: "sentence pieces, with the Python package sentencepiece; embedcache cuts"
    " texts into sentences, or words",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that goes into a function or comes out.

    Attributes:
        name: Its name; its place in a list; empty where there is only one.
        dtype: Such as ``"float32"``; ``"RaggedTensorSpec"`` and the like for no plain tensor.
        shape: Its dimensions, None for a free one; None for a free number of them.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class CallForm:
    """A signature, or one of the ways in which a module can be called.

    Attributes:
        name: The signature's; ``"__call__"`` for the module itself.
        inputs: What goes in.
        outputs: What comes out.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class SavedModelContents:
    """What a SavedModel's protocol buffer tells.

    Attributes:
        format: ``"TF2 SavedModel"``, ``"TF1 Hub module"`` or ``"TF1 SavedModel"``.
        signatures: By name.
        calls: The forms of ``__call__``, each once; those of TF1 have none.
    """

    format: str
    signatures: tuple[CallForm, ...]
    calls: tuple[CallForm, ...]


def describe_saved_model(handle: str, path: Path) -> SavedModelContents:
    """Read what a SavedModel holds. This imports TensorFlow for its protocol buffers only.

    Args:
        handle: The module's, for messages.
        path: Its folder.

    Raises:
        ModuleError: if ``saved_model.pb`` cannot be read.
    """
    graph = served_graph(read_meta_graphs(handle, path))
    is_tf2 = graph.HasField("object_graph_def")
    saved_format = "TF1 Hub module" if (path / _TF1_HUB_FILE).is_file() else "TF1 SavedModel"
    signatures = tuple(
        CallForm(name, _infos(signature.inputs), _infos(signature.outputs))
        for name, signature in sorted(graph.signature_def.items())
        if not name.startswith(_INTERNAL)
    )
    calls = dict.fromkeys(_calls(graph.object_graph_def)) if is_tf2 else {}
    return SavedModelContents(
        "TF2 SavedModel" if is_tf2 else saved_format, signatures, tuple(calls)
    )


def find_facts(handle: str, path: Path) -> ModuleFacts | None:
    """What a probe of a module finds; None if it loads but is of no kind that is known.

    Raises:
        ModuleError: if it cannot be loaded.
    """
    from embedcache.modules.probe import probe_loaded

    model = load_saved_model(handle, path)
    try:
        return probe_loaded(handle, model, path)
    except ModuleError:
        return None


def describe_tokenizer(facts: ModuleFacts) -> str:
    """Who splits a text, and at what, in words."""
    if facts.kind == PREPROCESSED_ENCODER:
        return "word pieces, made by its preprocessor"
    if facts.kind == TF1_BERT:
        return "word pieces, by the vocabulary that the module names"
    if facts.kind == PREPROCESSOR:
        return f"word pieces, by its {facts.signature}"
    return _TOKENIZERS.get(facts.tokenizer, facts.tokenizer)


def describe_build(handle: str, facts: ModuleFacts, view: FeatureView) -> str:
    """What a row of a build stands for, and what can be chosen, in two sentences.

    Args:
        handle: The module's.
        facts: What its probe found.
        view: The module's view with the default settings.
    """
    row = _ROWS[facts.kind].format(output=_output_name(view.output))
    size = f"{view.dim} numbers in {view.dtype}"
    if facts.kind in SEQUENCE_KINDS:
        return (
            f"A row is {row}: {size}; it depends on the whole text, so every text has rows of its"
            f" own (dense encoding). --layer can be {_layer_choices(handle, facts)};"
            " --granularity can only be token."
        )
    part = "sentence" if view.granularity == "sentence" else "token"
    others = ", ".join(
        f"{name} ({_GRANULARITY_ROWS[name]})" for name in GRANULARITIES if name != view.granularity
    )
    return (
        f"A row is {row}: {size}; it depends on that {part} alone (context-free), so each distinct"
        " one can be stored once (dictionary encoding). --granularity is"
        f" {view.granularity}, and can be {others}; there is no --layer."
    )


_GRANULARITY_ROWS = {
    "token": "a row a word",
    "sentence": "a row a sentence",
    "window": f"a row a word with {CONTEXT_WORDS_DEFAULT} words on either side",
}


def _output_name(output: str) -> str:
    return f"layer {output}" if output.isdecimal() else output


def _layer_choices(handle: str, facts: ModuleFacts) -> str:
    """What ``--layer`` takes of a module: ``1 to 12, sequence_output, mean, all``."""
    choices = [layer_names((*facts.layers, *facts.outputs))]
    for mode in (MEAN, ALL):
        try:
            choose_layers(handle, facts, mode)
        except ModuleError:
            continue  # no layers, or of widths that do not fit one another
        choices.append(mode)
    return ", ".join(choices)


def _infos(tensors: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """The inputs or outputs of a signature."""
    return tuple(
        TensorSpec(name, _dtype_name(info.dtype), _shape_of(info.tensor_shape))
        for name, info in sorted(tensors.items())
    )


def _calls(objects: Any) -> Iterator[CallForm]:
    """The forms of the root's ``__call__`` in a graph of saved objects."""
    for child in objects.nodes[0].children:
        if child.local_name != _ROOT_CALL:
            continue
        for name in objects.nodes[child.node_id].function.concrete_functions:
            function = objects.concrete_functions[name]
            yield CallForm(
                _ROOT_CALL,
                tuple(_leaves(function.canonicalized_input_signature, "", is_input=True)),
                tuple(_leaves(function.output_signature, "", is_input=False)),
            )


def _leaves(value: Any, name: str, *, is_input: bool) -> Iterator[TensorSpec]:
    """The tensors in a nest of tuples, lists and dicts; plain Python values are left out."""
    kind = value.WhichOneof("kind")
    if kind in ("tuple_value", "list_value"):
        values = getattr(value, kind).values
        # Inputs are (positional, by name): their places in these say nothing.
        for place, item in enumerate(values):
            within = name if is_input and not name else f"{name}/{place}".lstrip("/")
            yield from _leaves(item, within, is_input=is_input)
    elif kind == "dict_value":
        for key, item in sorted(value.dict_value.fields.items()):
            yield from _leaves(item, f"{name}/{key}".lstrip("/"), is_input=is_input)
    elif kind in ("tensor_spec_value", "bounded_tensor_spec_value"):
        spec = getattr(value, kind)
        own = spec.name if is_input else ""
        yield TensorSpec(name or own, _dtype_name(spec.dtype), _shape_of(spec.shape))
    elif kind == "type_spec_value":
        yield TensorSpec(name, value.type_spec_value.type_spec_class_name, None)


def _dtype_name(number: int) -> str:
    import tensorflow as tf

    return str(tf.dtypes.as_dtype(number).name)


def _shape_of(shape: Any) -> tuple[int | None, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)

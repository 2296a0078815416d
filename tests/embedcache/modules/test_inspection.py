"""What is told of a SavedModel without loading it is what loading it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from embedcache.errors import ModuleError
from embedcache.modules.facts import PREPROCESSED_ENCODER, SEQUENCE_KINDS
from embedcache.modules.inspection import (
    TensorSpec,
    describe_build,
    describe_saved_model,
    describe_tokenizer,
    find_facts,
)
from embedcache.modules.saved_model import inputs_of, load_saved_model, signatures_of
from embedcache.modules.settings import ViewSettings
from embedcache.view import GRANULARITIES
from tests.embedcache.modules.hub_subjects import HubModules, names_of, shared_hub_modules
from tests.hub_modules.saving import quiet_tensorflow, save_tf2

TF1 = {"nnlm-tf1", "nnlm-tf1-sentences", "use-tf1", "use-lite", "elmo", "elmo-train-graph",
       "elmo-like", "tf1-bert", "tf1-bert-one-graph", "tf1-bert-mlm"}  # fmt: skip


@pytest.fixture(scope="module")
def hub(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> HubModules:
    return shared_hub_modules(pytestconfig, tmp_path_factory)


def _told(specs: tuple[TensorSpec, ...]) -> dict[str, tuple[str, object]]:
    return {spec.name: (spec.dtype, spec.shape) for spec in specs}


def _loaded(tensors: Any) -> dict[str, tuple[str, object]]:
    return {
        name: (
            tensor.dtype.name,
            None if tensor.shape.rank is None else tuple(tensor.shape.as_list()),
        )
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("name", names_of())
def test_signatures_are_those_of_the_loaded_module(hub: HubModules, name: str) -> None:
    path = hub.path(name)
    contents = describe_saved_model(name, path)
    model = load_saved_model(name, path)
    signatures = signatures_of(model)
    told = {form.name: form for form in contents.signatures}
    assert set(told) == set(signatures)
    for signature, function in signatures.items():
        assert _told(told[signature].inputs) == _loaded(inputs_of(function))
        assert _told(told[signature].outputs) == _loaded(function.structured_outputs)
    assert contents.format.startswith("TF1" if name in TF1 else "TF2")
    assert bool(contents.calls) == callable(model)


def test_calls_are_told_once_with_the_names_of_their_tensors(hub: HubModules) -> None:
    """Keras saves a call for training and one for inference, which look the same."""
    (keras,) = describe_saved_model("m", hub.path("bert-keras2")).calls
    (plain,) = describe_saved_model("m", hub.path("bert")).calls
    assert keras == plain
    ids = ("int32", (None, None))
    assert _told(plain.inputs) == {
        "input_mask": ids, "input_type_ids": ids, "input_word_ids": ids,
    }  # fmt: skip
    layer = ("float32", (None, None, 8))
    assert _told(plain.outputs) == {
        "default": ("float32", (None, 8)), "pooled_output": ("float32", (None, 8)),
        "encoder_outputs/0": layer, "encoder_outputs/1": layer, "sequence_output": layer,
    }  # fmt: skip


def test_lone_tensor_has_no_name(hub: HubModules) -> None:
    (call,) = describe_saved_model("m", hub.path("nnlm")).calls
    assert _told(call.inputs) == {"sentences": ("string", (None,))}
    assert _told(call.outputs) == {"": ("float32", (None, 8))}


def test_ragged_tensors_and_free_ranks_are_told(tmp_path: Path) -> None:
    with quiet_tensorflow() as tf:
        specs = [tf.TensorSpec([None], tf.string, "text"), tf.TensorSpec(None, tf.int64, "any")]
        root = tf.Module()
        root.__call__ = tf.function(
            lambda text, other: (tf.strings.split(text), other), input_signature=specs
        )
        save_tf2(root, tmp_path / "m")
    (call,) = describe_saved_model("m", tmp_path / "m").calls
    assert _told(call.inputs) == {"text": ("string", (None,)), "any": ("int64", None)}
    assert _told(call.outputs) == {"0": ("RaggedTensorSpec", None), "1": ("int64", None)}


def test_text_form_of_a_saved_model_is_read_too(hub: HubModules, tmp_path: Path) -> None:
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    path = hub.path("nnlm")
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    (tmp_path / "saved_model.pbtxt").write_text(text_format.MessageToString(saved))
    assert describe_saved_model("m", tmp_path) == describe_saved_model("m", path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("saved_model.pb", b"no protocol buffer"),
        ("saved_model.pb", b""),
        ("saved_model.pbtxt", b"meta_graphs {"),
        ("saved_model.pbtxt", b"\xff"),
    ],
)
def test_damaged_saved_model_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModuleError, match=r"^the-handle: cannot be loaded .*: fetch it again$"):
        describe_saved_model("the-handle", tmp_path)


def test_facts_are_found_where_there_are_some(hub: HubModules) -> None:
    facts = find_facts("m", hub.path("elmo"))
    assert facts == hub.pinned("elmo").facts
    assert find_facts("m", hub.path("image")) is None
    with pytest.raises(ModuleError, match="SentencepieceTokenizeOp"):
        find_facts("m", hub.path("custom-op-missing"))


@pytest.mark.parametrize("name", names_of())
def test_what_a_build_could_be_told_it_takes(hub: HubModules, name: str) -> None:
    """Each granularity and layer that is named can be chosen, and no other."""
    pinned = hub.pinned(name)
    view = pinned.view(ViewSettings())
    told = describe_build(name, pinned.facts, view)
    assert f": {view.dim} numbers in {view.dtype};" in told
    for granularity in GRANULARITIES:
        is_told = re.search(rf"--granularity [^;.]*\b{granularity}\b", told) is not None
        assert is_told == _is_taken(pinned, ViewSettings(granularity=granularity))
    is_contextual = pinned.facts.kind in SEQUENCE_KINDS
    assert ("dictionary encoding" in told) == (not is_contextual)
    assert ("there is no --layer" in told) == (not is_contextual)
    if is_contextual:
        listed = re.search(r"--layer can be ([^;]*);", told)
        assert listed is not None
        choices = listed[1].split(", ")
        if pinned.facts.layers[1:] and pinned.facts.layers[0].name.isdecimal():
            assert choices.pop(0) == f"1 to {len(pinned.facts.layers)}"
            choices += [str(number + 1) for number in range(len(pinned.facts.layers))]
        named = {layer.name for layer in (*pinned.facts.layers, *pinned.facts.outputs)}
        assert set(choices) - {"mean", "all"} == named
        assert all(_is_taken(pinned, ViewSettings(layer=choice)) for choice in choices)
        for mode in ("mean", "all"):
            assert (mode in choices) == _is_taken(pinned, ViewSettings(layer=mode))


def _is_taken(pinned: Any, settings: ViewSettings) -> bool:
    try:
        pinned.view(settings)
    except ModuleError:
        return False
    return True


@pytest.mark.parametrize("name", names_of())
def test_tokenizer_is_told_in_words(hub: HubModules, name: str) -> None:
    facts = hub.pinned(name).facts
    told = describe_tokenizer(facts)
    assert told != facts.tokenizer
    assert " " in told
    assert ("word pieces" in told) == (facts.kind in (PREPROCESSED_ENCODER, "tf1-bert"))


def test_preprocessor_has_a_tokenizer_and_no_rows(hub: HubModules) -> None:
    path = hub.preprocess("bert")
    assert path is not None
    facts = find_facts("m", path)
    assert facts is not None
    assert describe_tokenizer(facts) == "word pieces, by its tokenize"
    assert facts.dim == 0

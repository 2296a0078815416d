"""Loading a SavedModel and calling it, with TensorFlow's errors mapped.

The one boundary at which TensorFlow's exceptions become embedcache's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import ModuleError, ModuleMemoryError
from embedcache.quiet import quiet_native_stderr

_MAX_REASON = 300
# What calling a module raises: TensorFlow's own errors apart, those of a wrong signature.
_CALL_ERRORS = (ValueError, TypeError, AttributeError, KeyError)
_NOISE = ("Graph execution error", "Detected at node", "File ", "<frozen", "[[")
_TF1_ASSETS = "saved_model_assets"
# What loading raises: RuntimeError where an operation is not registered, IndexError where a
# file of variables is cut short.
_LOAD_ERRORS = (OSError, RuntimeError, IndexError, *_CALL_ERRORS)


def load_saved_model(handle: str, path: Path) -> Any:
    """``tf.saved_model.load``; of TF1 Hub's format too, whose graph has no tags.

    A module that uses operations of ``tensorflow_text`` is loaded with that package if it
    is installed.

    Raises:
        ModuleError: if it cannot be loaded.
    """
    with quiet_native_stderr():
        import tensorflow as tf
    try:
        return _load(handle, path)
    except (tf.errors.OpError, *_LOAD_ERRORS) as error:
        reason = _one_line(error)
        if "not registered" not in reason and "Op type" not in reason:
            raise _not_whole(handle, error) from error
        if find_spec("tensorflow_text") is None:
            raise ModuleError(
                f"{handle}: uses an operation that this TensorFlow lacks ({reason}); install the"
                " package that has it, for text modules mostly tensorflow-text"
            ) from error
    return _load_with_text(handle, path)


def _load_with_text(handle: str, path: Path) -> Any:
    import tensorflow as tf

    try:
        with quiet_native_stderr():
            import_module("tensorflow_text")  # registers its operations
        return _load(handle, path)
    except (tf.errors.OpError, ImportError, *_LOAD_ERRORS) as error:
        raise ModuleError(
            f"{handle}: cannot be loaded, with tensorflow-text imported ({_one_line(error)});"
            " install the tensorflow-text of this TensorFlow's version"
        ) from error


def _load(handle: str, path: Path) -> Any:
    import tensorflow as tf

    tags = _saved_tags(read_meta_graphs(handle, path))
    with quiet_native_stderr():
        return tf.saved_model.load(str(path), tags=tags)


def served_graph(graphs: Sequence[Any]) -> Any:
    """Of a module's graphs the one that is loaded: for serving, never one for training."""

    def rank(graph: Any) -> tuple[bool, bool]:
        # Without "train" first: TF1 Hub's modules have a graph without tags beside it.
        tags = graph.meta_info_def.tags
        return "train" in tags, "serve" not in tags

    return min(graphs, key=rank)


def _saved_tags(graphs: Sequence[Any]) -> list[str] | None:
    """The tags to load a module by; None for one of TensorFlow 2, which has one graph only."""
    if any(graph.HasField("object_graph_def") for graph in graphs):
        return None
    return list(served_graph(graphs).meta_info_def.tags)


def read_meta_graphs(handle: str, path: Path) -> list[Any]:
    """The graphs of a SavedModel as protocol buffers, read without loading it.

    Raises:
        ModuleError: if its file is no SavedModel's.
    """
    with quiet_native_stderr():
        from google.protobuf import message, text_format
        from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        if (path / "saved_model.pb").is_file():
            saved.ParseFromString((path / "saved_model.pb").read_bytes())
        else:
            text_format.Parse((path / "saved_model.pbtxt").read_text(encoding="utf-8"), saved)
    except (OSError, ValueError, message.DecodeError, text_format.ParseError) as error:
        raise _not_whole(handle, error) from error
    if not saved.meta_graphs:
        raise _not_whole(handle, ValueError("it holds no graph"))
    return list(saved.meta_graphs)


def _not_whole(handle: str, error: BaseException) -> ModuleError:
    return ModuleError(
        f"{handle}: cannot be loaded as a SavedModel ({_one_line(error)}); its files are not"
        " whole: fetch it again"
    )


def asset_of(handle: str, path: Path, model: Any, signature: str, output: str) -> Path:
    """The file that a signature of a TF1 module returns the name of.

    Loaded in TensorFlow 2, such a signature returns the placeholder that TensorFlow 1 fed
    the name into; then it is looked up among the files that the SavedModel lists.

    Raises:
        ModuleError: if there is no such file.
    """
    named = Path(model.signatures[signature]()[output].numpy().decode())
    if named.is_file():
        return named
    for graph in read_meta_graphs(handle, path):
        tensor = graph.signature_def[signature].outputs[output].name
        files = {item.tensor_info.name: item.filename for item in _assets(graph)}
        name = files.get(tensor) or (next(iter(files.values())) if len(files) == 1 else None)
        if name is not None and (path / "assets" / name).is_file():
            return path / "assets" / str(name)
    raise ModuleError(
        f"{handle}: the file that its signature {signature!r} names as {output!r} is not among"
        " its assets; fetch the module again"
    )


def _assets(graph: Any) -> list[Any]:
    """The files of a graph; TensorFlow 1 listed them in a collection."""
    from tensorflow.core.protobuf import meta_graph_pb2

    listed = list(graph.asset_file_def)
    if _TF1_ASSETS in graph.collection_def:
        for packed in graph.collection_def[_TF1_ASSETS].any_list.value:
            asset = meta_graph_pb2.AssetFileDef()
            packed.Unpack(asset)
            listed.append(asset)
    return listed


@contextmanager
def mapped_errors(handle: str, what: str) -> Iterator[None]:
    """Turn what TensorFlow raises while a module runs into one line.

    Args:
        handle: The module's.
        what: What it does not do, for the message: ``"does not take a batch of strings"``.
    """
    import tensorflow as tf

    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        raise ModuleMemoryError(
            f"{handle}: out of memory ({_one_line(error)}); give a smaller --batch-tokens or"
            " --max-tokens"
        ) from error
    except (tf.errors.OpError, *_CALL_ERRORS) as error:
        raise ModuleError(f"{handle}: {what} ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    """What an error says, without the stack and the nodes that TensorFlow puts around it."""
    lines = (line.strip() for line in str(error).splitlines())
    told = " ".join(line for line in lines if line and not line.startswith(_NOISE))
    return " ".join(told.split())[:_MAX_REASON] or type(error).__name__


Signature = Mapping[str, Any]
"""Input name → ``tf.TensorSpec``."""


def signatures_of(model: Any) -> dict[str, Any]:
    """Name → concrete function, of all the signatures that a module has."""
    return dict(getattr(model, "signatures", {}) or {})


def inputs_of(function: Any) -> Signature:
    """The inputs of a signature by name."""
    _, named = function.structured_input_signature
    return dict(named)


def is_string(spec: Any) -> bool:
    """Whether an input takes strings."""
    return str(spec.dtype.name) == "string"


def is_integer(spec: Any) -> bool:
    """Whether an input takes integers."""
    return bool(spec.dtype.is_integer)


def rank_of(spec: Any) -> int | None:
    """The number of dimensions; None if it is free."""
    rank: int | None = spec.shape.rank
    return rank


def string_call(
    model: Any, signature: str, output: str
) -> Callable[[Sequence[bytes]], NDArray[np.float32]]:
    """A module that takes a batch of strings, as a function of UTF-8 texts."""
    import tensorflow as tf

    def call(texts: Sequence[bytes]) -> NDArray[np.float32]:
        strings = tf.constant(list(texts), tf.string)
        if signature == "__call__":
            result = only_tensor(model(strings), output)
        else:
            function = model.signatures[signature]
            (name,) = inputs_of(function)
            result = function(**{name: strings})[output]
        return np.asarray(result.numpy(), np.float32)

    return call


def only_tensor(result: Any, output: str = "") -> Any:
    """The tensor of what a module returned: sentence-t5 gives a list of one, LaBSE a dict."""
    if isinstance(result, Mapping):
        return result[output or next(iter(result))]
    if isinstance(result, list | tuple) and len(result) == 1:
        return result[0]
    return result

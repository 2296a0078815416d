"""How the makers save: quietly, and in the two formats that TF Hub knows."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcache.quiet import quiet_native_stderr

# ModuleDef{format: FORMAT_V3} of TensorFlow Hub's module_def.proto: field 1, value 3.
TF1_HUB_MARK = b"\x08\x03"
# What TF Hub's exporter leaves of an asset's path, so that it tells nothing of its machine.
ASSET_PLACEHOLDER = b"SAVEDMODEL-ASSET"


@dataclass(frozen=True, slots=True)
class Tf1Signature:
    """A signature of a TF1 graph.

    Attributes:
        inputs: Input name → placeholder.
        outputs: Output name → tensor.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


# Builds one graph variant in the default graph: signature name → signature.
GraphBuilder = Callable[[], Mapping[str, Tf1Signature]]


@contextmanager
def quiet_tensorflow() -> Iterator[Any]:
    """TensorFlow, imported and used without a line on standard error.

    Yields:
        The module ``tensorflow``.
    """
    with quiet_native_stderr():
        import tensorflow as tf

        logger = tf.get_logger()
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield tf
        finally:
            logger.setLevel(level)


@contextmanager
def asset_folder() -> Iterator[Path]:
    """A folder for the files that a SavedModel takes in; gone once it is saved."""
    with tempfile.TemporaryDirectory(prefix="hub-module-") as folder:
        yield Path(folder)


def save_tf2(root: Any, path: Path, signatures: Mapping[str, Any] | None = None) -> Path:
    """Save an object as a TF2 SavedModel; without ``signatures`` it has none at all."""
    with quiet_tensorflow() as tf:
        tf.saved_model.save(root, str(path), dict(signatures or {}))
    return path


def save_tf1(
    path: Path, build: GraphBuilder, *, tags: Sequence[str] = (), train_graph: bool = False
) -> Path:
    """Save graphs as the TF1 library `tensorflow_hub.create_module_spec` did.

    Args:
        path: The folder, which must not exist.
        build: Makes the placeholders, variables and tables.
        tags: The graph's tags; none for a TF Hub module, which ``tfhub_module.pb`` marks.
        train_graph: Add a second graph with the tag "train", as modules with dropout have.
            `tf.saved_model.load` then asks for ``tags``.
    """
    with quiet_tensorflow() as tf:
        builder = tf.compat.v1.saved_model.Builder(str(path))
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            signatures = _signature_defs(tf, build)
            session.run(tf.compat.v1.global_variables_initializer())
            assets = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.ASSET_FILEPATHS)
            builder.add_meta_graph_and_variables(
                session, list(tags), signatures, assets, strip_default_attrs=True
            )
        if train_graph:
            with tf.Graph().as_default(), tf.compat.v1.Session():
                signatures = _signature_defs(tf, build)
                assets = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.ASSET_FILEPATHS)
                builder.add_meta_graph(["train"], signatures, assets, strip_default_attrs=True)
        builder.save()
        _hide_asset_paths(path)
    if not tags:
        (path / "tfhub_module.pb").write_bytes(TF1_HUB_MARK)
    return path


def tf1_variable(name: str, values: Any) -> Any:
    """A TF1 resource variable that starts as a NumPy array."""
    import tensorflow as tf

    return tf.compat.v1.get_variable(
        name, values.shape, initializer=tf.constant_initializer(values), use_resource=True
    )


def tf1_asset(file: Path, name: str) -> Any:
    """A scalar string tensor that is the path of a file saved with the module."""
    import tensorflow as tf

    tensor = tf.constant(str(file), tf.string, name=name)
    tf.compat.v1.add_to_collection(tf.compat.v1.GraphKeys.ASSET_FILEPATHS, tensor)
    return tensor


def rewrite_proto(path: Path, rewrite: Callable[[Any], None]) -> None:
    """Change a saved model's protocol buffer in place."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = path / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    rewrite(proto)
    file.write_bytes(proto.SerializeToString(deterministic=True))


def _signature_defs(tf: Any, build: GraphBuilder) -> dict[str, Any]:
    describe = tf.compat.v1.saved_model.build_tensor_info
    return {
        name: tf.compat.v1.saved_model.build_signature_def(
            {key: describe(tensor) for key, tensor in signature.inputs.items()},
            {key: describe(tensor) for key, tensor in signature.outputs.items()},
        )
        for name, signature in build().items()
    }


def _hide_asset_paths(path: Path) -> None:
    """Clear the paths of the maker's machine, as TF Hub's exporter does.

    Loaded by TensorFlow 2, a signature that returns such a path returns the placeholder:
    the file is found among the loaded object's ``asset_paths`` only.
    """

    def rewrite(proto: Any) -> None:
        for graph in proto.meta_graphs:
            names = {name.split(":")[0] for name in _asset_tensors(graph)}
            for node in graph.graph_def.node:
                if node.name in names:
                    node.attr["value"].tensor.string_val[0] = ASSET_PLACEHOLDER

    rewrite_proto(path, rewrite)


def _asset_tensors(graph: Any) -> list[str]:
    from tensorflow.core.protobuf import meta_graph_pb2

    names: list[str] = []
    # Looking a missing key up in a map of protocol buffers adds it.
    if "saved_model_assets" not in graph.collection_def:
        return names
    for packed in graph.collection_def["saved_model_assets"].any_list.value:
        asset = meta_graph_pb2.AssetFileDef()
        packed.Unpack(asset)
        names.append(asset.tensor_info.name)
    return names

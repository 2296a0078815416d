"""SavedModels that no text encoder can be made of, or that fail when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.hub_modules.saving import quiet_tensorflow, rewrite_proto, save_tf2
from tests.hub_modules.sentence_encoder import make_use

MISSING_OP = "SentencepieceTokenizeOp"


def make_image_module(path: Path) -> Path:
    """An image module: float32 (B, 8, 8, 3) → (B, 16)."""
    with quiet_tensorflow() as tf:
        root = tf.Module()
        root.dense = tf.Variable(tf.random.stateless_normal([192, 16], [0, 0]))

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, "images")])
        def call(images: Any) -> Any:
            return tf.linalg.matmul(tf.reshape(images, [-1, 192]), root.dense)

        root.__call__ = call
        return save_tf2(root, path, {"serving_default": call.get_concrete_function()})


def make_no_signature(path: Path) -> Path:
    """An object that cannot be called and has no signature: a variable only."""
    with quiet_tensorflow() as tf:
        root = tf.Module()
        root.table = tf.Variable(tf.zeros([4, 8]))
        return save_tf2(root, path)


def make_custom_op_missing(path: Path) -> Path:
    """A module with an operation of tensorflow-text, which TensorFlow alone cannot load."""
    make_use(path)

    def rewrite(proto: Any) -> None:
        library = proto.meta_graphs[0].graph_def.library
        for node in (node for function in library.function for node in function.node_def):
            if node.op == "StringSplitV2":
                node.op = MISSING_OP

    rewrite_proto(path, rewrite)
    return path


def make_wrong_signature(path: Path) -> Path:
    """A signature of two strings, as universal-sentence-encoder-qa's ``response_encoder``."""
    with quiet_tensorflow() as tf:
        root = tf.Module()
        root.table = tf.Variable(tf.random.stateless_normal([97, 16], [0, 0]))

        @tf.function
        def respond(**inputs: Any) -> Any:
            joined = tf.strings.join([inputs["input"], inputs["context"]], " ")
            buckets = tf.strings.to_hash_bucket_fast(joined, 97)
            return {"outputs": tf.gather(root.table, buckets)}

        specs = {name: tf.TensorSpec([None], tf.string, name) for name in ("input", "context")}
        return save_tf2(root, path, {"response_encoder": respond.get_concrete_function(**specs)})


def make_rank3(path: Path) -> Path:
    """string → float32 (B, L, 8), in TF2: a row a word, where a text vector is looked for."""
    with quiet_tensorflow() as tf:
        root = tf.Module()
        root.table = tf.Variable(tf.random.stateless_normal([97, 8], [0, 0]))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def call(texts: Any) -> Any:
            words = tf.strings.split(texts).to_tensor("")
            return tf.gather(root.table, tf.strings.to_hash_bucket_fast(words, 97))

        root.__call__ = call
        return save_tf2(root, path)


def make_classifier_ints(path: Path) -> Path:
    """string → int64 (B,): the class of a text, no vector."""
    with quiet_tensorflow() as tf:
        root = tf.Module()

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def call(texts: Any) -> Any:
            return tf.strings.to_hash_bucket_fast(texts, 5)

        root.__call__ = call
        return save_tf2(root, path, {"serving_default": call.get_concrete_function()})


def make_nan_sentence_encoder(path: Path) -> Path:
    """string → float32 (B, 8), NaN for a text that contains "nan"; sound for the others."""
    with quiet_tensorflow() as tf:
        root = tf.Module()
        root.table = tf.Variable(tf.random.stateless_normal([97, 8], [0, 0]))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def call(texts: Any) -> Any:
            rows = tf.gather(root.table, tf.strings.to_hash_bucket_fast(texts, 97))
            spoiled = tf.strings.regex_full_match(texts, ".*nan.*")
            return tf.where(spoiled[:, None], float("nan"), rows)

        root.__call__ = call
        return save_tf2(root, path)

"""The two SavedModels of a BERT on TF Hub: a preprocessor and an encoder.

Their interface is that of Hub's common text API for transformer encoders with a
preprocessor; the tokeniser needs no operation but TensorFlow's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from embedcache.modules.bert_encoder import BertEncoder, take_tensor
from embedcache.modules.bert_packing import pack_pieces
from embedcache.modules.bert_tokenizer import BertTokenizer, SpecialPieces
from embedcache.modules.safetensors import Tensors
from embedcache.modules.saving import save_module

__all__ = ["EncoderModule", "PreprocessModule", "save_encoder", "save_preprocess"]

_TEXT_SPEC = tf.TensorSpec([None], tf.string, name="text")
_PACKED_SPEC = {
    name: tf.TensorSpec([None, None], tf.int32, name=name)
    for name in ("input_mask", "input_type_ids", "input_word_ids")
}


class _HubModule(tf.Module):  # type: ignore[misc]
    """A frozen root object: what every module on TF Hub has, with nothing to train."""

    # tf.Module computes these two; a SavedModel keeps only what is an attribute.
    variables: Any = ()
    trainable_variables: Any = ()

    def _freeze(self, variables: Sequence[Any]) -> None:
        """Say which variables there are; the lists are what is saved."""
        self.variables = list(variables)
        self.trainable_variables: Any = []
        self.regularization_losses: Any = []


class TokenizeModule(tf.Module):  # type: ignore[misc]
    """The preprocessor's `tokenize`, which can be called and has methods of its own."""

    def __init__(self, tokenizer: BertTokenizer) -> None:
        super().__init__(name="tokenize")
        self._tokenizer = tokenizer

    @tf.function(input_signature=[_TEXT_SPEC], autograph=False)  # type: ignore[untyped-decorator]
    def __call__(self, text: Any) -> Any:
        """Split texts: (batch,) string → RaggedTensor (batch, words, pieces) int32."""
        return self._tokenizer.tokenize_words(text)

    @tf.function(input_signature=[_TEXT_SPEC], autograph=False)  # type: ignore[untyped-decorator]
    def tokenize_with_offsets(self, text: Any) -> Any:
        """Split texts: (batch,) string → ids, starts and limits, each (batch, None).

        See `BertTokenizer.tokenize_with_offsets`.
        """
        return self._tokenizer.tokenize_with_offsets(text)

    @tf.function(input_signature=[], autograph=False)  # type: ignore[untyped-decorator]
    def get_special_tokens_dict(self) -> dict[str, Any]:
        """Return the ids of the special pieces and the vocabulary's size, int32 scalars."""
        special = self._tokenizer.special
        known = {
            "vocab_size": self._tokenizer.vocab_size,
            "padding_id": special.padding,
            "start_of_sequence_id": special.start,
            "end_of_segment_id": special.end,
            "mask_id": special.mask,
        }
        return {name: tf.constant(value, tf.int32) for name, value in known.items()}


class PackInputsModule(tf.Module):  # type: ignore[misc]
    """The preprocessor's `bert_pack_inputs`."""

    def __init__(self, special: SpecialPieces, seq_length: int) -> None:
        """Trace the call for one and two segments, (batch, None) and (batch, None, None)."""
        super().__init__(name="bert_pack_inputs")
        length = tf.TensorSpec([], tf.int32, name="seq_length")
        row = tf.RaggedTensorSpec([None, None], tf.int32)
        # The work is traced once for each number of segments; the calls below only wrap it.
        packers = [
            tf.function(
                partial(pack_pieces, special=special),
                input_signature=[[row] * n, length],
                autograph=False,
            )
            for n in (1, 2)
        ]

        def pack(inputs: list[Any], seq_length: Any = seq_length) -> dict[str, Any]:
            rows = [
                pieces.merge_dims(1, -1) if pieces.ragged_rank > 1 else pieces for pieces in inputs
            ]
            packed: dict[str, Any] = packers[len(rows) - 1](rows, seq_length)
            return packed

        self.__call__ = tf.function(pack, autograph=False)
        for rank in (2, 3):
            segment = tf.RaggedTensorSpec([None] * rank, tf.int32)
            for segments in ([segment], [segment, segment]):
                self.__call__.get_concrete_function(segments, length)
                self.__call__.get_concrete_function(segments)


class PreprocessModule(_HubModule):
    """The root of the preprocessor: texts to the three inputs of an encoder.

    Attributes:
        tokenize: texts → pieces, see `TokenizeModule`.
        tokenize_with_offsets: the same method of `tokenize`.
        bert_pack_inputs: one or two ragged tensors of pieces and a `seq_length` → inputs.
    """

    def __init__(self, tokenizer: BertTokenizer, seq_length: int) -> None:
        super().__init__(name="preprocess")
        self._tokenizer = tokenizer
        self._seq_length = seq_length
        self.tokenize = TokenizeModule(tokenizer)
        self.tokenize_with_offsets = self.tokenize.tokenize_with_offsets
        self.bert_pack_inputs = PackInputsModule(tokenizer.special, seq_length)
        self._freeze(tokenizer.variables)

    @tf.function(input_signature=[_TEXT_SPEC], autograph=False)  # type: ignore[untyped-decorator]
    def __call__(self, text: Any) -> dict[str, Any]:
        """Prepare texts: (batch,) string → three tensors (batch, seq_length) int32.

        ``input_word_ids`` (``[CLS]``, the pieces, ``[SEP]``, then 0; what is too long is
        cut), ``input_mask`` (1 where a piece is) and ``input_type_ids`` (0).
        """
        pieces = self._tokenizer.tokenize(text)
        return pack_pieces([pieces], self._seq_length, self._tokenizer.special)


class EncoderModule(_HubModule):
    """The root of the encoder."""

    def __init__(self, encoder: BertEncoder, tensors: Tensors) -> None:
        """Take an encoder, and the pooler from the checkpoint's tensors if it has one.

        Raises:
            ModuleError: the pooler has another shape than the encoder, or is not whole.
        """
        super().__init__(name="encoder")
        self._encoder = encoder
        self._pooler = _take_pooler(tensors, encoder.config.hidden_dim)
        self._freeze([*encoder.variables, *self._pooler])

    @tf.function(input_signature=[_PACKED_SPEC], autograph=False)  # type: ignore[untyped-decorator]
    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Encode what the preprocessor gives, of any length up to the checkpoint's.

        Args:
            inputs: ``input_word_ids``, ``input_mask`` and ``input_type_ids``, each
                (batch, length) int32.

        Returns:
            ``encoder_outputs``: the layers' outputs from the bottom, each (batch, length,
            dim) float32; ``sequence_output``: the last of them; ``pooled_output`` and
            ``default``: (batch, dim), the first piece's, through the checkpoint's pooler (a
            dense layer and tanh) where it has one, else as the last layer gives it.
        """
        states = self._encoder(
            inputs["input_word_ids"], inputs["input_mask"], inputs["input_type_ids"]
        )
        pooled = states[-1][:, 0]
        if self._pooler:
            kernel, bias = self._pooler
            pooled = tf.tanh(tf.matmul(pooled, kernel, transpose_b=True) + bias)
        return {
            "encoder_outputs": states[1:],
            "sequence_output": states[-1],
            "pooled_output": pooled,
            "default": pooled,
        }


def _take_pooler(tensors: Tensors, dim: int) -> list[Any]:
    """Return the pooler's kernel and bias as variables, or nothing where there is none."""
    shapes = {"pooler.dense.weight": (dim, dim), "pooler.dense.bias": (dim,)}
    if not any(name.endswith(tuple(shapes)) for name in tensors):
        return []
    return [
        tf.Variable(take_tensor(tensors, name, shape), trainable=False, name=name)
        for name, shape in shapes.items()
    ]


def save_preprocess(module: PreprocessModule, directory: Path) -> None:
    """Write the preprocessor, with its call as the signature `serving_default`."""
    signature = module.__call__.get_concrete_function()
    save_module(module, directory, signature)


def save_encoder(module: EncoderModule, directory: Path) -> None:
    """Write the encoder; a signature's outputs are flat: ``encoder_outputs_0``, ….

    `serving_default` takes the three inputs by their names.
    """

    def serve(**inputs: Any) -> dict[str, Any]:
        outputs = dict(module(inputs))
        layers = outputs.pop("encoder_outputs")
        return outputs | {f"encoder_outputs_{place}": state for place, state in enumerate(layers)}

    signature = tf.function(serve, autograph=False).get_concrete_function(**_PACKED_SPEC)
    save_module(module, directory, signature)

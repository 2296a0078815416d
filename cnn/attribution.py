"""How much each filter of a model adds to each class, and which tokens it saw.

A class's logit is a sum over the pooled features, so that it can be taken apart exactly:

- ``kim``: logit_c = Σ_f w_fc · x_f + b_c, where x_f = max over the positions t of
  relu(conv_f(t)). What filter f adds is w_fc · x_f; it saw the kernel's tokens around the
  position of the maximum, cut at the text's edges.
- ``basic`` has a hidden layer h_u = relu(Σ_f v_fu · x_f + a_u) between. Of a given text the
  units A = {u: h_u > 0} are a linear function and the others are 0, so that
  logit_c = Σ_f (Σ_{u∈A} v_fu · w_uc) · x_f + Σ_{u∈A} a_u · w_uc + b_c: the sums over A are a
  filter's weight and the bias. Exact for the text, and for no other.
- ``linear``: logit_c = Σ_t (Σ_d w_dc · e_td) / n + b_c over the n tokens' rows e_t: each token
  is a window of its own.

What the model is made of is found in `open_network` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.backend import import_keras

_MAX_POOL = "max_over_time"
_MEAN_POOL = "features"
_DENSE = ("hidden", "classes")


@dataclass(frozen=True, slots=True)
class Attribution:
    """What the windows of one text add to the logits of C classes.

    Attributes:
        num_tokens: Tokens of the text.
        starts: First token of each of the W windows, (W,) int64.
        stops: Token after its last, (W,) int64.
        widths: Width of the kernel, (W,) int64; more than ``stops - starts`` where the window
            was cut at an edge of the text.
        filters: The filters, numbered within their width, whose maximum lies in the window;
            empty where the model has none.
        contributions: (W, C) float64: what these filters add to each class.
        bias: (C,) float64: the part of the logits that no window has.
    """

    num_tokens: int
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    widths: NDArray[np.int64]
    filters: tuple[tuple[int, ...], ...]
    contributions: NDArray[np.float64]
    bias: NDArray[np.float64]

    @property
    def logits(self) -> NDArray[np.float64]:
        """(C,) float64: the windows and the bias together."""
        logits: NDArray[np.float64] = self.contributions.sum(axis=0) + self.bias
        return logits

    def spread_over_tokens(self, label: int) -> NDArray[np.float64]:
        """(num_tokens,) float64: each window's contribution to one class, spread over its tokens.

        Evenly: a window of 3 tokens gives each a third, so that the sums are kept.
        """
        shares = self.contributions[:, label] / np.maximum(self.stops - self.starts, 1)
        edges = np.zeros(self.num_tokens + 1)
        np.add.at(edges, self.starts, shares)
        np.subtract.at(edges, self.stops, shares)
        spread: NDArray[np.float64] = np.cumsum(edges)[:-1]
        return spread


@dataclass(frozen=True, slots=True)
class Network:
    """A trained model, opened.

    Attributes:
        inner: Keras model of the same inputs; its outputs are what goes into each pooling
            layer, (B, L, F_i), and then what comes out of each, (B, F_i).
        widths: Kernel width of each pooling layer; empty where tokens are averaged.
        dense: Kernel and bias of each dense layer, the first first, float64.
    """

    inner: Any
    widths: tuple[int, ...]
    dense: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]

    def attribute(self, inputs: Any, lengths: NDArray[Any]) -> list[Attribution]:
        """Take a batch apart.

        Args:
            inputs: What the model is fed for B texts.
            lengths: Tokens of each, (B,).
        """
        # Called, not `predict_on_batch`: that traces anew for each shape, and TensorFlow warns
        # where several runs are explained.
        ops = import_keras().ops
        called = self.inner([ops.convert_to_tensor(each) for each in inputs], training=False)
        outputs = [ops.convert_to_numpy(each) for each in called]
        positions, pooled = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
        counts = lengths.tolist()
        if not self.widths:
            return [self._of_tokens(row[:n]) for row, n in zip(positions[0], counts, strict=True)]
        features = np.concatenate(pooled, axis=1)
        winners = np.concatenate([_argmax(each, lengths) for each in positions], axis=1)
        return [
            self._of_filters(best, row, length, [each.shape[2] for each in positions])
            for best, row, length in zip(winners, features, counts, strict=True)
        ]

    def _weights(self, features: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a feature of this text weighs in each class, (F, C), and the bias, (C,)."""
        weights, bias = self.dense[0]
        for next_weights, next_bias in self.dense[1:]:
            active = features @ weights + bias > 0
            bias = bias[active] @ next_weights[active] + next_bias
            weights = weights[:, active] @ next_weights[active]
        return weights, bias

    def _of_tokens(self, rows: NDArray[Any]) -> Attribution:
        weights, bias = self.dense[0]
        places = np.arange(len(rows), dtype=np.int64)
        return Attribution(
            num_tokens=len(rows),
            starts=places,
            stops=places + 1,
            widths=np.ones(len(rows), np.int64),
            filters=((),) * len(rows),
            contributions=rows.astype(np.float64) @ weights / max(1, len(rows)),
            bias=bias,
        )

    def _of_filters(
        self,
        winners: NDArray[np.int64],
        features: NDArray[Any],
        length: int,
        counts: Sequence[int],
    ) -> Attribution:
        weights, bias = self._weights(features)
        contributions = features.astype(np.float64)[:, None] * weights
        # A filter that fired nowhere has no window.
        fired = np.flatnonzero(features)
        kernels = np.repeat(np.arange(len(counts)), counts)[fired]
        numbers = np.concatenate([np.arange(count) for count in counts])[fired]
        # One window for all filters of a width that fired at the same position.
        places, group = np.unique(
            np.stack([kernels, winners[fired]], axis=1), axis=0, return_inverse=True
        )
        group = group.reshape(-1)
        totals = np.zeros((len(places), len(bias)))
        np.add.at(totals, group, contributions[fired])
        widths = np.asarray(self.widths, np.int64)[places[:, 0]]
        # Keras's "same" padding: of an even width the longer half lies after the position.
        starts = places[:, 1] - (widths - 1) // 2
        members: list[list[int]] = [[] for _ in places]
        for number, place in zip(numbers.tolist(), group.tolist(), strict=True):
            members[place].append(number)
        return Attribution(
            num_tokens=length,
            starts=np.maximum(starts, 0),
            stops=np.minimum(starts + widths, length),
            widths=widths,
            filters=tuple(map(tuple, members)),
            contributions=totals,
            bias=bias,
        )


def open_network(model: Any, kernel_sizes: Sequence[int]) -> Network:
    """Find what explaining needs in a model of `cnn.model`: the one place that knows its layers.

    Args:
        model: As `cnn.model.build_model` made it, trained or loaded.
        kernel_sizes: The widths of its convolutions, in their order.
    """
    keras = import_keras()
    pools = [layer for layer in model.layers if layer.name.startswith(_MAX_POOL)]
    pooling = pools or [model.get_layer(_MEAN_POOL)]
    # What lies between, dropout and joining features, changes nothing when predicting.
    dense = [layer for layer in model.layers if layer.name in _DENSE]
    outputs = [*(pool.input[0] for pool in pooling), *(pool.output for pool in pooling)]
    return Network(
        inner=keras.Model(model.inputs, outputs),
        widths=tuple(kernel_sizes) if pools else (),
        dense=tuple((_float64(layer.kernel), _float64(layer.bias)) for layer in dense),
    )


def _float64(weight: Any) -> NDArray[np.float64]:
    return np.asarray(import_keras().ops.convert_to_numpy(weight), np.float64)


def _argmax(activations: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """The first position of each maximum among a text's own: (B, L, F), (B,) → (B, F)."""
    is_padding = np.arange(activations.shape[1])[None, :] >= np.asarray(lengths)[:, None]
    own = np.where(is_padding[:, :, None], -np.inf, activations)
    winners: NDArray[np.int64] = own.argmax(axis=1)
    return winners

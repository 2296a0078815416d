"""A stream as a TensorFlow dataset: the one file of the stream that imports TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embedcache.quiet import quiet_native_stderr
from embedcache.stream.epochs import Arrays, inputs_of, iter_epochs
from embedcache.stream.prefetch import Prefetcher
from embedcache.stream.state import StreamState
from embedcache.stream.stream import FeatureStream


def as_tensorflow_dataset(
    stream: FeatureStream,
    *,
    epochs: int | None = 1,
    state: StreamState | None = None,
    prefetch: int = 0,
) -> Any:
    """The batches of a stream as a ``tf.data.Dataset``, for Keras's ``fit`` or a loop of one's own.

    Whole batches go from Python to TensorFlow, never single texts, under a signature that
    leaves B and L open: no length is fixed by the first batches. One pass over the dataset is
    ``epochs`` epochs, each with an order of its own, so Keras is told how long one is::

        dataset = as_tensorflow_dataset(stream, epochs=3)
        model.fit(dataset, epochs=3, steps_per_epoch=stream.num_batches, shuffle=False)

    TensorFlow's autotuning is off for it, and for what is mapped over it: there is nothing here to
    tune, and its thread takes time from the steps. ``tf.data.Options`` turn it on again.

    What the stream raises, TensorFlow raises as an error of its own, with the message in it.

    Args:
        stream: The stream.
        epochs: How many epochs; None: without end.
        state: Where to begin; None: at the first batch of the first epoch.
        prefetch: Batches that TensorFlow reads ahead of its own; 0: none, as a `Prefetcher` reads
            ahead where that gains anything.

    Returns:
        A dataset of pairs: a dictionary of ``values`` (B, L, dim), ``lengths`` (B,) int32 and,
        where the stream has a table, ``token_numbers`` (B, L) int32; and labels, (B,) int32 or,
        with ``multilabel=True``, (B, C) uint8.

    Raises:
        ValueError: if ``epochs`` is below 1.
        TrainingError: as `embedcache.stream.resuming.check_state`.
    """
    with quiet_native_stderr():
        import tensorflow as tf

    # Once before, for what it refuses: inside TensorFlow it would be hard to read.
    iter_epochs(stream, epochs=epochs, state=state)

    def generate() -> Iterator[tuple[Arrays, Any]]:
        with Prefetcher(iter_epochs(stream, epochs=epochs, state=state)) as batches:
            for batch in batches:
                yield inputs_of(batch), batch.labels
                del batch

    inputs = {
        "values": tf.TensorSpec((None, None, stream.dim), stream.dtype),
        "lengths": tf.TensorSpec((None,), tf.int32),
    }
    if stream.token_table is not None:
        inputs["token_numbers"] = tf.TensorSpec((None, None), tf.int32)
    labels = tf.TensorSpec((None,), tf.int32)
    if stream.is_multilabel:
        labels = tf.TensorSpec((None, len(stream.label_names)), tf.uint8)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=(inputs, labels))
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    return dataset.prefetch(prefetch) if prefetch else dataset

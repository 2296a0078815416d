"""What the SavedModels that are written here have in common. Importing it imports TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

__all__ = ["line_numbers", "save_module"]


def line_numbers(asset: Any) -> Any:
    """The initializer of a look-up table: each line of a vocabulary file → its number, int64.

    Make the table anonymous: a named one is named after an address in memory, which would
    make each conversion of the same file another module.

    Args:
        asset: the file as a ``tf.saved_model.Asset``, which is saved with the module.
    """
    return tf.lookup.TextFileInitializer(
        asset,
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
    )


def save_module(module: Any, directory: Path, signatures: Any) -> None:
    """Write a SavedModel whose bytes depend on what is in it alone.

    Two processes that save the same module write the same files, so that it has one digest;
    TensorFlow's own `fingerprint.pb`, which holds a random number, is left out for that.

    Args:
        module: the root object, a ``tf.Module``.
        directory: a folder that does not exist or is empty.
        signatures: as ``tf.saved_model.save`` takes them.
    """
    tf.saved_model.save(module, str(directory), signatures)
    (directory / "fingerprint.pb").unlink(missing_ok=True)

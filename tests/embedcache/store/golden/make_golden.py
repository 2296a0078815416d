"""Make the golden shards anew: only when the format gets a new version, beside the old ones.

    python tests/embedcache/store/golden/make_golden.py FOLDER

The numbers are fixed and written out; nothing of them comes from a module.
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np

from embedcache.keys import keys_of_texts, sort_order
from embedcache.ragged import expand_ranges, splits_of_lengths
from embedcache.store.image import ShardContent
from embedcache.view import FeatureView

# Version 1. Nothing of this may change any more: these shards are read for ever.
TEXTS = ["a good film", "", "é", "bad"]
LENGTHS = np.array([3, 0, 1, 2])
TRUNCATED = np.array([1, 0, 0, 1], np.uint8)

DENSE_VIEW = FeatureView(
    module_digest="00112233445566778899aabbccddeeff",
    signature="__call__",
    tokenizer="space",
    dim=3,
)
DENSE_ROWS = np.array(
    [
        [0.5, -1.0, 2.0],
        [0.25, 65504.0, -0.0],
        [6e-8, 1.5, 3.0],
        [-7.0, 8.0, 9.5],
        [10.0, 11.0, 12.0],
        [13.0, -14.0, 0.125],
    ],
    "<f2",
)

DICTIONARY_VIEW = FeatureView(
    module_digest="ffeeddccbbaa99887766554433221100",
    signature="default",
    output="sequence",
    tokenizer="module",
    dim=2,
    max_tokens=3,
    dtype="float32",
)
DICTIONARY = np.array([[0.1, -0.2], [1e30, 3.0], [0.0, 5.5]], "<f4")
CODES = np.array([2, 0, 2, 1, 1, 0], "<u4")


# Version 2: the texts, views and rows of version 1, and what it lacks.
WINDOWED = np.array([2, 0, 0, 1], np.uint8)
TOKEN_IDS = np.array([1037, 2204, 2143, 4294967295, 0, 2919], "<u4")
SPANS = np.array([[0, 1], [2, 6], [7, 11], [0, 2], [0, 0], [0, 3]], "<u4")


def golden_contents() -> dict[str, ShardContent]:
    """File name → what is in it, in the order of the keys."""
    keys = keys_of_texts(TEXTS)
    order = sort_order(keys)
    tokens = expand_ranges(splits_of_lengths(LENGTHS)[:-1][order], LENGTHS[order])
    dense = {"values": DENSE_ROWS[tokens]}
    dictionary = {"codes": CODES[tokens], "dictionary": DICTIONARY}
    spans = {"spans": SPANS[tokens]}
    both = {"token_ids": TOKEN_IDS[tokens], **spans}
    contents = {
        "dense.h5": (DENSE_VIEW, TRUNCATED, dense, {}),
        "dictionary.h5": (DICTIONARY_VIEW, TRUNCATED, dictionary, {}),
        "dense-v2.h5": (DENSE_VIEW, WINDOWED, dense, both),
        "dictionary-v2.h5": (DICTIONARY_VIEW, TRUNCATED, dictionary, spans),
    }
    splits = splits_of_lengths(LENGTHS[order])
    return {
        name: ShardContent(view, keys[order], splits, flags[order], rows, extras)
        for name, (view, flags, rows, extras) in contents.items()
    }


def golden_images() -> dict[str, bytes]:
    """File name → bytes, as today's code writes them."""
    return {name: bytes(content.image()) for name, content in golden_contents().items()}


def main() -> None:
    folder = Path(sys.argv[1])
    for name, image in golden_images().items():
        (folder / name).write_bytes(image)
    (folder / "hdf5-version.txt").write_text(h5py.version.hdf5_version + "\n", encoding="ascii")


if __name__ == "__main__":
    main()

"""Make the golden shards anew: only when the format gets a new version, beside the old ones.

    python tests/embedcache/store/golden/make_golden.py FOLDER

The numbers are fixed and written out; nothing of them comes from a module.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from embedcache.keys import keys_of_texts, sort_order
from embedcache.ragged import expand_ranges, splits_of_lengths
from embedcache.store.shards.image import ShardContent
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


# Version 3: the texts and tokens of version 2; numbers of other types, and compressed.
INT8_VIEW = replace(DENSE_VIEW, dtype="int8")
INT8_ROWS = np.array(
    [[64, -127, 1], [127, 0, -1], [0, 0, 0], [-127, 2, 3], [127, 127, 127], [5, -127, 100]], "i1"
)
INT8_SCALES = np.array([0.5, 2.0**-24, 0.0, 0.25, 2e36, 0.1], "<f4")
BFLOAT16_VIEW = replace(DICTIONARY_VIEW, dtype="bfloat16")
BFLOAT16_DICTIONARY = np.array([[0x3F80, 0xC000], [0x7F7F, 0x0001], [0x8000, 0x40B1]], "<u2")
"""1 and -2; the largest finite number and the smallest above 0; -0 and 5.53125."""


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
    int8 = {"values": INT8_ROWS[tokens], "scales": INT8_SCALES[tokens]}
    bfloat16 = {"codes": CODES[tokens], "dictionary": BFLOAT16_DICTIONARY}
    contents |= {
        "int8-v3.h5": (INT8_VIEW, WINDOWED, int8, both),
        "bfloat16-v3.h5": (BFLOAT16_VIEW, TRUNCATED, bfloat16, {}),
        "zstd-v3.h5": (DENSE_VIEW, WINDOWED, dense, both),
    }
    splits = splits_of_lengths(LENGTHS[order])
    return {
        name: ShardContent(
            view=view,
            keys=keys[order],
            row_splits=splits,
            flags=flags[order],
            rows=rows,
            extras=extras,
            compression="zstd" if name.startswith("zstd") else "none",
        )
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

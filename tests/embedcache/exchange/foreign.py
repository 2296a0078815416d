"""Files of features as AllenNLP and bilm-tf write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

DIM = 6
LAYERS = 3


def layers_of(line: str, *, state: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    """What stands for a biLM's three layers of a line, (3, T, dim) float32.

    A stateful one gives others for another state.
    """
    seed = [state, *line.strip().encode()]
    rng = np.random.default_rng(seed)
    return rng.standard_normal((LAYERS, len(line.split()), dim)).astype(np.float32)


def rows_of(line: str) -> NDArray[np.float32]:
    """The layers side by side, (T, 3 · dim), made in another way than the code does."""
    layers = layers_of(line)
    return np.concatenate([layers[0], layers[1], layers[2]], axis=1)


def write_allennlp(
    path: Path,
    lines: Sequence[str],
    *,
    output_format: str = "all",
    forget_sentences: bool = False,
    states: Sequence[int] | None = None,
) -> Path:
    """Write what ``allennlp elmo`` writes for the lines of a file.

    By the same calls of h5py, with what its ELMo would compute replaced: a float32 dataset
    for each line, named by its number, and the sentences as one JSON string.
    """
    sentences = [line.strip() for line in lines]
    assert "" not in sentences, "the command refuses blank lines"
    sentence_to_index: dict[str, str] = {}
    with h5py.File(path, "w") as file:
        for number, sentence in enumerate(sentences):
            output: Any = layers_of(sentence, state=states[number] if states else 0)
            sentence_to_index[sentence] = str(number)
            if output_format == "top":
                output = output[-1]
            elif output_format == "average":
                output = np.average(output, axis=0)
            file.create_dataset(str(number), output.shape, dtype="float32", data=output)
        if not forget_sentences:
            text = h5py.special_dtype(vlen=str)
            dataset = file.create_dataset("sentence_to_index", (1,), dtype=text)
            dataset[0] = json.dumps(sentence_to_index)
    return path


def write_bilm(path: Path, lines: Sequence[str]) -> Path:
    """Write what bilm-tf's ``dump_bilm_embeddings`` writes: also for blank lines."""
    with h5py.File(path, "w") as file:
        for number, line in enumerate(lines):
            layers = layers_of(line)
            file.create_dataset(f"{number}", layers.shape, dtype="float32", data=layers)
    return path

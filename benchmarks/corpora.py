"""Texts to measure with: Kim's (2014) data sets, or generated ones of like lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import embedcache
from benchmarks.scale import Scale
from embedcache.corpus import CorpusOptions, CorpusReader, sources_of

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
_VOCABULARY = Path("modules/builtin/en-words-128/assets/vocab.txt")
_PART_TEXTS = 10_000


def sst2_sources(scale: Scale, folder: Path, num_texts: int) -> tuple[dict[str, Path], str]:
    """SST-2 by split where it is there, else a labelled corpus of its length mix.

    Returns:
        The files, and what they are, for the notes.
    """
    files = sst2_files()
    if scale.use_real_data and files:
        return files, "SST-2, all three splits (9,613 texts, 20.9 tokens on average)"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "generated.tsv"
    lines = [
        f"{number % 2}\t{text}\n"
        for number, text in enumerate(iter_texts(num_texts, mean_words=21, seed=1))
    ]
    path.write_text("label\ttext\n" + "".join(lines), encoding="utf-8")
    return {"train": path}, f"{num_texts:,} generated texts of SST-2's length mix"


def trec_files() -> dict[str, Path]:
    """TREC by split; empty where it is not beside the checkout."""
    return _files("trec", ("train", "test"))


def sst2_files() -> dict[str, Path]:
    """SST-2 by split; empty where it is not beside the checkout."""
    return _files("sst2", ("train", "dev", "test"))


def _files(name: str, splits: Sequence[str]) -> dict[str, Path]:
    files = {split: SHARED_DATA / f"{name}.{split}.tsv" for split in splits}
    return files if all(path.exists() for path in files.values()) else {}


def sst2_texts() -> list[bytes]:
    """The distinct texts of SST-2 in their order; none where it is not beside the checkout."""
    files = sst2_files()
    if not files:
        return []
    reader = CorpusReader(sources_of(files), CorpusOptions())
    return list(dict.fromkeys(text for batch in reader for text in batch.texts))


def write_texts(path: Path, num_texts: int, *, mean_words: int, seed: int = 1) -> Path:
    """A file of generated texts, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for text in iter_texts(num_texts, mean_words=mean_words, seed=seed):
            file.write(text + "\n")
    return path


def iter_texts(num_texts: int, *, mean_words: int, seed: int) -> Iterator[str]:
    """Texts of words of the built-in module's vocabulary; the first n are the same for any number.

    Words are drawn by Zipf's law. Lengths are drawn from a gamma distribution of SST-2's
    shape (there: mean 19.3 words, standard deviation 9.3).
    """
    words = _vocabulary()
    weights = 1.0 / (np.arange(len(words)) + 2.7)
    bounds = np.cumsum(weights / weights.sum())
    rng = np.random.default_rng(seed)
    rng.shuffle(words)
    while num_texts > 0:
        lengths = _draw_lengths(rng, mean_words)
        ranks = np.searchsorted(bounds, rng.random(int(lengths.sum()))).clip(max=len(words) - 1)
        flat = [words[rank] for rank in ranks.tolist()]
        start = 0
        for length in lengths[:num_texts].tolist():
            yield " ".join(flat[start : start + length])
            start += length
        num_texts -= _PART_TEXTS


def _draw_lengths(rng: np.random.Generator, mean_words: int) -> NDArray[np.int64]:
    drawn = rng.gamma(4.3, mean_words / 4.3, _PART_TEXTS)
    return drawn.round().clip(3, 3 * mean_words).astype(np.int64)


def _vocabulary() -> list[str]:
    path = Path(embedcache.__file__).parent / _VOCABULARY
    return [word for word in path.read_text(encoding="utf-8").split("\n") if word.isalpha()]

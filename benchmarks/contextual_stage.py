"""embedcache's side of B3: its compute stage alone, and a whole build."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import embedcache
from benchmarks.contextual_peers import IDS, Batch, BatchRecorder, Reference, Sample
from benchmarks.measure import WrongAnswerError
from embedcache import FeatureStore
from embedcache.compute.batches import BATCH_TOKENS_DEFAULT
from embedcache.compute.choosing import make_computer
from embedcache.compute.fidelity import Fidelity
from embedcache.compute.missing import MissingTexts
from embedcache.encoder import SequenceEncoder
from embedcache.keys import keys_of_utf8
from embedcache.modules.settings import ViewSettings
from embedcache.pinning import PinnedModule

ROUNDING = 2.0**-11
"""What storing as float16 adds: half of the last bit."""


class ComputeStage:
    """Texts → tokens → batches → module → storage dtype → a shard, forced to the device.

    Args:
        name: As a contender.
        pinned: The module; it is loaded here.
        layer: As ``--layer`` has it; None: the module's output.
        path: Where a new store is made for every run.

    Attributes:
        encoder: The loaded module.
        num_checked: Texts that the last run computed once more, alone.
    """

    def __init__(self, name: str, pinned: PinnedModule, layer: str | None, path: Path) -> None:
        self.name = name
        self._pinned = pinned
        self._view = pinned.view(ViewSettings(layer=layer))
        self.encoder = pinned.load_encoder(self._view)
        self._path = path
        self._stores: list[FeatureStore] = []
        self.num_checked = 0

    def renew(self, _number: int = 0) -> None:
        """Make a new store."""
        while self._stores:
            self._stores.pop().close()
        shutil.rmtree(self._path, ignore_errors=True)
        store = embedcache.open_store(self._path)
        self._stores.append(store)
        store.catalog.add_view(
            self._view, self._pinned.handle, preprocess=self._pinned.preprocess_handle
        )

    def run(self, sample: Sample) -> float:
        """Compute and store a sample; its real tokens."""
        writer = self._stores[-1].writer(self._view)
        computer = make_computer(
            self.encoder,
            writer,
            self._view,
            fidelity=Fidelity(self._pinned.handle, self._view.dtype),
            batch_tokens=BATCH_TOKENS_DEFAULT,
        )
        keys = keys_of_utf8(sample.texts)
        for start in range(0, len(keys), computer.buffer_texts):
            part = slice(start, start + computer.buffer_texts)
            computer.compute(MissingTexts(keys[part], sample.texts[part], str))
        writer.flush()
        self.num_checked = computer.fidelity.report.texts
        if computer.counts.tokens != sample.num_tokens:
            raise WrongAnswerError(f"{self.name!r} has {computer.counts.tokens} rows")
        return sample.num_tokens

    def record_batches(self, sample: Sample) -> Sequence[Batch]:
        """The batches that a run puts through the module."""
        if not isinstance(self.encoder, SequenceEncoder):
            raise TypeError(f"{self._pinned.handle}: is not contextual")
        self.renew()
        with BatchRecorder(self.encoder) as recorder:
            self.run(sample)
        if sum(len(batch[IDS]) for batch in recorder.batches) != len(sample.texts):
            raise WrongAnswerError("a text is in no batch, or in two")
        return recorder.batches

    def check(self, sample: Sample, reference: Reference) -> None:
        """Compare what the last run has stored, as far as the reference goes."""
        compare_stored(self.name, self._stores[-1], sample, reference)

    def close(self) -> None:
        """Close the store."""
        while self._stores:
            self._stores.pop().close()


class WholeBuild:
    """`embedcache.build` of a file, into a new store each time.

    Args:
        name: As a contender.
        handle: The module's.
        folder: Where the corpus and the store go.
        sample: The corpus.
    """

    def __init__(self, name: str, handle: str, folder: Path, sample: Sample) -> None:
        self.name = name
        self._handle = handle
        self._store_path = folder / "built"
        self._corpus = folder / "corpus.txt"
        self._corpus.write_bytes(b"".join(text + b"\n" for text in sample.texts))
        self._sample = sample

    def remove(self, _number: int) -> None:
        """Remove the store of the last run."""
        shutil.rmtree(self._store_path, ignore_errors=True)

    def run(self, _number: int) -> float:
        """Build; the real tokens."""
        with embedcache.open_store(self._store_path) as store:
            report = embedcache.build(store, self._corpus, module=self._handle, dataset="b3")
        if report.hits or report.tokens != self._sample.num_tokens:
            raise WrongAnswerError(f"not a build of misses: {report}")
        return report.tokens

    def check(self, reference: Reference) -> None:
        """Compare what the last run has stored."""
        with embedcache.open_store(self._store_path, create=False) as store:
            compare_stored(self.name, store, self._sample, reference)


def compare_stored(name: str, store: FeatureStore, sample: Sample, reference: Reference) -> None:
    """Read the first texts back, as many as the reference has, and compare them."""
    texts = [text.decode() for text in sample.texts[: len(reference)]]
    features = store.get(store.newest_view(), texts)
    for pieces, rows in zip(sample.pieces, features, strict=False):
        reference.compare(name, pieces, rows, rounding=ROUNDING)

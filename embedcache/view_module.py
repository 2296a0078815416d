"""ViewModule: the module of a view, loaded once, and what was found of its rows."""

from __future__ import annotations

import time
from dataclasses import replace

from embedcache.compute.fidelity import Fidelity
from embedcache.encoder import SequenceEncoder, TokenEncoder
from embedcache.pinning import PinnedModule
from embedcache.store.database.catalog import Catalog
from embedcache.store.shards.codec import ReconstructionError
from embedcache.view import FeatureView


class ViewModule:
    """The module of one view. One thread; constructing it loads nothing.

    Any number of `embedcache.misses.MissComputer` may use it, one after the other: so the
    module is loaded once for them all, and its first texts alone are computed again.

    Args:
        pinned: The module.
        view: The view.

    Attributes:
        fidelity: What computing some texts again has shown.
        loading_s: Seconds that loading the module took.
    """

    def __init__(self, pinned: PinnedModule, view: FeatureView) -> None:
        self.view = view
        self.fidelity = Fidelity(pinned.handle, view.dtype)
        self.loading_s = 0.0
        self._pinned = pinned
        self._encoder: TokenEncoder | SequenceEncoder | None = None
        self._error = ReconstructionError()
        self._num_kept_texts = 0

    @property
    def is_loaded(self) -> bool:
        """Whether the module is in memory."""
        return self._encoder is not None

    def load_encoder(self) -> TokenEncoder | SequenceEncoder:
        """The module, loaded the first time; this imports TensorFlow.

        Raises:
            ModuleError: if it cannot be loaded.
        """
        if self._encoder is None:
            started = time.monotonic()
            self._encoder = self._pinned.load_encoder(self.view)
            self.loading_s = time.monotonic() - started
        return self._encoder

    def note_error(self, found: ReconstructionError) -> None:
        """Add what storing some rows has cost, which was not noted before."""
        noted = self._error
        noted.rows += found.rows
        noted.squared_error += found.squared_error
        noted.squared_norm += found.squared_norm
        noted.max_error = max(noted.max_error, found.max_error)

    def keep_findings(self, catalog: Catalog) -> None:
        """Keep with the view what was found since this was last called; fine if it is nothing.

        Raises:
            StoreError: if the catalog cannot be written; the next call tries once more.
        """
        report, fingerprint = self.fidelity.report, self.view.fingerprint
        new_texts = report.texts - self._num_kept_texts
        if new_texts:
            difference = report.max_difference
            catalog.add_check(fingerprint, texts=new_texts, max_difference=difference)
            self._num_kept_texts = report.texts
        if self._error.rows:
            catalog.add_reconstruction(
                fingerprint,
                rows=self._error.rows,
                squared_error=self._error.squared_error,
                squared_norm=self._error.squared_norm,
                max_error=self._error.max_error,
            )
            self._error = ReconstructionError()


def error_since(before: ReconstructionError, now: ReconstructionError) -> ReconstructionError:
    """What was added to an error; the largest is that of both."""
    return replace(
        now,
        rows=now.rows - before.rows,
        squared_error=now.squared_error - before.squared_error,
        squared_norm=now.squared_norm - before.squared_norm,
    )

"""What a stream asks of whoever has the features: a store on this machine, or a service.

`embedcache.store.store.FeatureStore` with its `embedcache.store.reader.ViewReader` is the one,
`embedcache.client.store.RemoteStore` with its `embedcache.client.reader.RemoteReader` the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.keys import Keys
from embedcache.store.ahead import ShardUse
from embedcache.store.database.records import ViewRecord
from embedcache.store.dataset import Dataset
from embedcache.store.refs import FeatureRefs, Members

if TYPE_CHECKING:
    from embedcache.view import FeatureView


class RowSource(Protocol):
    """Rows of some texts, one after the other: a shard, or what a service has sent."""

    @property
    def is_dictionary(self) -> bool:
        """Whether a row stands for a token, which many texts share."""

    def take(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Rows by position, (len(positions), dim), of the view's value dtype."""


class PreparedTexts(Protocol):
    """Texts that are about to be read, batch by batch, in their order."""

    def gather_padded(self, texts: slice, out: NDArray[Any]) -> None:
        """As `FeatureReader.gather_padded`."""


class FeatureReader(Protocol):
    """The features of one view. Any threads; never across a fork."""

    @property
    def view(self) -> FeatureView:
        """The view."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of what is gathered: the view's value dtype."""

    def locate(self, keys: Keys) -> FeatureRefs:
        """Where the matrices of n keys lie; ``shards`` is -1 where there is none."""

    def gather_padded(
        self, refs: FeatureRefs, out: NDArray[Any], *, texts: slice = slice(None)
    ) -> None:
        """The matrices into a batch, zeros after the end of each and where one is missing.

        Args:
            refs: Where matrices lie.
            out: Shape (n, L, dim), contiguous, of the view's value dtype; overwritten.
            texts: Which n of them, none longer than L.
        """

    def prepare(self, refs: FeatureRefs, padded: NDArray[np.int64]) -> PreparedTexts | None:
        """Prepare texts that will be read batch by batch; None: `gather_padded` reads them.

        Args:
            refs: Where n matrices lie, in the order of the batches.
            padded: What each of them is padded to, (n,): in a batch all to the same.
        """

    def groups(
        self, refs: FeatureRefs
    ) -> Iterator[tuple[RowSource, Members, NDArray[np.int64], NDArray[np.int64]]]:
        """Sources of rows, each with the places in ``refs``, the starts and the lengths there."""

    def shard_uses(self, refs: FeatureRefs) -> list[ShardUse]:
        """What n texts need, and which of them are neighbours, for an order by blocks."""

    def open_shards(self, refs: FeatureRefs) -> Sequence[object]:
        """The shards of some texts on this machine; who holds them, keeps them open.

        None of a service: its features cost the same in any order.
        """


class FeatureSource(Protocol):
    """Whoever has datasets and their features. ``copy.copy`` opens it anew, after a fork too."""

    def load_dataset(self, name: str | None = None) -> Dataset:
        """A dataset: ``NAME`` (its newest version), ``NAME@VERSION``, None the newest."""

    def view_of_dataset(self, dataset: Dataset, view: str | None = None) -> ViewRecord:
        """The view named, or the one that the dataset was last built under."""

    def record_use(self, view: str, version: str) -> None:
        """Keep that a dataset version's features under a view are used now; never an error."""

    def reader(self, view: ViewRecord) -> FeatureReader:
        """The reader of a view."""

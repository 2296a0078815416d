"""A stream as a torch dataset. torch is imported when one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedcache.errors import TrainingError
from embedcache.stream.stream import FeatureStream

if TYPE_CHECKING:
    from embedcache.stream.torch_batches import TorchBatches


def as_torch_dataset(stream: FeatureStream) -> TorchBatches:
    """The batches of a stream as a torch ``IterableDataset``, for a ``DataLoader``.

    Its items are whole batches, so that the loader must not batch them again. With workers the
    dataset deals the texts out among them; each opens the store anew::

        dataset = as_torch_dataset(stream)
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
        for epoch in range(3):
            dataset.set_epoch(epoch)
            for batch in loader:
                batch["values"], batch["lengths"], batch["labels"]

    Args:
        stream: The stream; of data-parallel training one with ``worker`` the process's rank.

    Returns:
        The dataset, of dictionaries of tensors: ``values`` (B, L, dim), ``lengths`` (B,) int32,
        ``labels`` (B,) int64 or, with ``multilabel=True``, (B, C) float32, ``rows`` (B,) int64 and,
        where the stream has a table, ``token_numbers`` (B, L) int32. Values are not copied.

    Raises:
        TrainingError: if torch is not installed.
    """
    try:
        from embedcache.stream.torch_batches import TorchBatches
    except ImportError as error:
        raise TrainingError(
            f"torch cannot be imported ({error}); install it with `pip install torch`"
        ) from None
    return TorchBatches(stream)

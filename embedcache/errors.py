"""Every exception that embedcache raises on purpose, in one tree.

    EmbedCacheError
    ├── CorpusError             a corpus cannot be read: names the file and the line
    ├── ModuleError             a module cannot be loaded, or is not a text module
    │   ├── ModuleChangedError  the files behind a pinned handle are not what they were
    │   └── ModuleMemoryError   a batch is too large for the memory: a smaller one may do
    ├── EncodingError           a module returned what cannot be stored: wrong shape, NaN, overflow
    │   └── FidelityError       what was computed in a batch is not what the module gives alone
    ├── StoreError              the store cannot be used
    │   ├── NotAStoreError      no store there
    │   ├── StoreVersionError   made by a newer embedcache
    │   ├── StoreLockedError    another process holds the catalog for too long
    │   ├── StoreReadOnlyError  the store cannot be written
    │   ├── DiskFullError       no space left: nothing half-written is catalogued
    │   ├── CorruptShardError   a shard's bytes are not what was written
    │   ├── DamagedIndexError   a derived index is not what was written: it is remade
    │   └── KeyNotFoundError    a text has no features under this view
    ├── UnknownNameError        no dataset, view or run of that name
    ├── ExchangeError           features cannot be exported or imported as asked
    ├── OutputError             a file that a command was told to write cannot be written
    ├── ServiceError            a feature service cannot be started, reached, or refuses
    └── TrainingError           a training cannot start or go on
        └── DivergedError       a loss has become infinite, or no number

Each message is one line and says what happened, where, and what to do next. The command
line prints it as ``error: …`` and ends with status 1; foreign exceptions are mapped to
this tree at one boundary each: TensorFlow's in `embedcache.modules`, h5py's in
`embedcache.store.shards.shard`, SQLAlchemy's in `embedcache.store.database.sqlite`.
"""

from __future__ import annotations


class EmbedCacheError(Exception):
    """The base of every exception that embedcache raises on purpose."""


class CorpusError(EmbedCacheError):
    """A corpus cannot be read; the message names the file, the line and the reason."""


class ModuleError(EmbedCacheError):
    """A module cannot be loaded, or is not a text module that can be used."""


class ModuleChangedError(ModuleError):
    """The files behind a handle are not those that the view was made with."""


class ModuleMemoryError(ModuleError):
    """A module ran out of memory on a batch; a smaller one may do."""


class EncodingError(EmbedCacheError):
    """A module returned what cannot be stored: wrong shape or dtype, NaN, overflow."""


class FidelityError(EncodingError):
    """Rows computed in a batch differ from those that the module gives for the text alone."""


class StoreError(EmbedCacheError):
    """The store cannot be used."""


class NotAStoreError(StoreError):
    """There is no store at the path."""


class StoreVersionError(StoreError):
    """The store or a shard was written by a newer version of embedcache."""


class StoreLockedError(StoreError):
    """Another process holds the catalog for longer than the time allowed."""


class StoreReadOnlyError(StoreError):
    """The store cannot be written."""


class DiskFullError(StoreError):
    """No space is left on the store's device; what was committed before stays."""


class CorruptShardError(StoreError):
    """A shard's bytes are not what was written; nothing of it is served."""


class DamagedIndexError(StoreError):
    """A derived index is not what was written; it is made anew from the shards."""


class KeyNotFoundError(StoreError, KeyError):
    """A text has no features under the view that was asked for."""

    # KeyError's own __str__ shows the repr of its argument: with quotes around the line.
    __str__ = Exception.__str__


class UnknownNameError(EmbedCacheError):
    """No dataset, view or run of that name; the message lists those there are."""


class ExchangeError(EmbedCacheError):
    """Features cannot be exported to a file, or imported from it."""


class OutputError(EmbedCacheError):
    """A file that a command was told to write cannot be written."""


class ServiceError(EmbedCacheError):
    """A feature service cannot be started or reached, or it refuses what was asked."""


class TrainingError(EmbedCacheError):
    """A training cannot start, or cannot go on."""


class DivergedError(TrainingError):
    """A loss has become infinite, or no number; the message says at which step."""

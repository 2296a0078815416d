"""`embedcache export`: a dataset with its features as a file that other programs read."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedcache.errors import ExchangeError
from embedcache.exchange.hugging_face import require_datasets, write_folder
from embedcache.exchange.npz_writer import write_npz
from embedcache.exchange.parquet import require_parquet, write_parquet
from embedcache.exchange.records import ExportRecords, open_records
from embedcache.exchange.targets import (
    mapped_target_errors,
    open_new,
    require_target,
    staged_file,
    staged_folder,
)
from embedcache.exchange.tfrecord import write_tfrecords
from embedcache.store.store import FeatureStore

EXPORT_FORMATS = ("npz", "parquet", "tfrecord", "datasets")
_FORMAT_OF_ENDING = {".npz": "npz", ".parquet": "parquet", ".tfrecord": "tfrecord"}
_FOLDER_FORMATS = ("datasets",)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote: ``export --json``.

    Attributes:
        path: The file or folder.
        format: One of `EXPORT_FORMATS`.
        dataset: The dataset's name.
        version: Its version.
        view: Fingerprint of the view.
        split: The split, or None for all documents.
        texts: Documents.
        tokens: Rows of all together.
        dim: The embedding width.
        dtype: Of the numbers written.
        bytes: Size of what was written.
        seconds: From start to end.
    """

    path: str
    format: str
    dataset: str
    version: str
    view: str
    split: str | None
    texts: int
    tokens: int
    dim: int
    dtype: str
    bytes: int
    seconds: float

    def to_record(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)


def export_dataset(
    store: FeatureStore,
    dataset: str | None,
    to: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the word of the command line
    view: str | None = None,
    split: str | None = None,
    force: bool = False,
) -> ExportReport:
    """Write a dataset's documents, in corpus order, with their features.

    The texts themselves are not in the store, and so not in the export.

    Args:
        store: An open store.
        dataset: Name, or ``NAME@VERSION``; None is the newest.
        to: The file, or for ``"datasets"`` the folder. It appears whole or not at all.
        format: One of `EXPORT_FORMATS`; None: by the ending of the name.
        view: Fingerprint or its beginning; None: the view the dataset was last built under.
        split: Only this split's documents; None: all.
        force: Whether what is there already is replaced.

    Raises:
        ExchangeError: if the target cannot be written, or a package is missing.
        DiskFullError: if the device is full; nothing is left behind.
        KeyNotFoundError: if the view lacks some of the texts.
        UnknownNameError: if there is no such dataset, view or split.
    """
    started = time.monotonic()
    target = Path(os.path.abspath(to))
    chosen = format or format_of_name(target)
    if chosen not in EXPORT_FORMATS:
        raise ValueError(f"format must be one of {', '.join(EXPORT_FORMATS)}: got {chosen!r}")
    _require_packages(chosen)
    require_target(target, force=force, is_folder=chosen in _FOLDER_FORMATS)
    if chosen == "tfrecord":
        require_target(sidecar_of(target), force=force, is_folder=False)
    records = open_records(store, dataset, view=view, split=split)
    staged = staged_folder if chosen in _FOLDER_FORMATS else staged_file
    with staged(target, force=force) as stage:
        _write(stage, records, chosen, target=target)
        num_bytes = _num_bytes(stage)
    return ExportReport(
        path=str(target),
        format=chosen,
        dataset=records.dataset.name,
        version=records.dataset.version,
        view=records.metadata["fingerprint"],
        split=split,
        texts=len(records),
        tokens=records.num_tokens,
        dim=records.dim,
        dtype=records.dtype.name,
        bytes=num_bytes,
        seconds=round(time.monotonic() - started, 3),
    )


def format_of_name(path: Path) -> str:
    """The format that the ending of a name says.

    Raises:
        ExchangeError: if it says none.
    """
    ending = path.suffix.lower()
    if ending not in _FORMAT_OF_ENDING:
        raise ExchangeError(
            f"{path}: its ending names no format; give --format {'|'.join(EXPORT_FORMATS)}, or"
            f" a name that ends in {', '.join(_FORMAT_OF_ENDING)}"
        )
    return _FORMAT_OF_ENDING[ending]


def _require_packages(chosen: str) -> None:
    if chosen == "parquet":
        require_parquet()
    elif chosen == "datasets":
        require_datasets()


def _write(stage: Path, records: ExportRecords, chosen: str, *, target: Path) -> None:
    if chosen == "datasets":
        write_folder(stage, records, target=target)
    elif chosen == "tfrecord":
        write_tfrecords(stage, records, target=target)
        _write_sidecar(records, target)
    else:
        with open_new(stage, target=target) as file:
            (write_npz if chosen == "npz" else write_parquet)(file, records)


def _write_sidecar(records: ExportRecords, target: Path) -> None:
    """A TFRecord file has no place for what it says of itself: it goes beside it."""
    beside = sidecar_of(target)
    with staged_file(beside, force=True) as stage, open_new(stage, target=beside) as file:
        file.write(records.metadata_json.encode() + b"\n")


def sidecar_of(target: Path) -> Path:
    """The file with the metadata of a TFRecord file: ``a.tfrecord`` → ``a.tfrecord.json``."""
    return target.with_name(f"{target.name}.json")


def _num_bytes(stage: Path) -> int:
    with mapped_target_errors(stage):
        paths = list(stage.iterdir()) if stage.is_dir() else [stage]
        return sum(path.stat().st_size for path in paths)

"""TensorBoard's event files, written without TensorFlow: scalars of each epoch, and HParams.

The ``tensorboard`` package brings the messages and their checksum. Its own writers are not used:
they import TensorFlow wherever it is installed.
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from cnn.progress import EpochReport
from cnn.run import Run
from embedcache.errors import TrainingError
from embedcache.store.publish import mapped_os_errors, one_line

_FILE_VERSION = "brain.Event:2"
_SESSION_START = "_hparams_/session_start_info"
_SESSION_END = "_hparams_/session_end_info"
_PLUGIN = "hparams"
_STATUS_SUCCESS = 1  # of tensorboard/plugins/hparams/api.proto

Scalars = Mapping[str, float]


class TensorBoardLog:
    """The logs of one run under a folder; a context manager.

    ``FOLDER/RUN`` holds its scalars, of each fold ``FOLDER/RUN/fold-1``, ``fold-2``, …, and
    at the end its configuration and scores as HParams.

    Args:
        folder: What ``tensorboard --logdir`` is given.
        run: The run's name.

    Raises:
        TrainingError: if the package ``tensorboard`` is not installed.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._messages = _Messages()
        self._folder = folder / run
        self._files: dict[Path, _EventFile] = {}

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def on_epoch(self, report: EpochReport, *, at: float | None = None) -> None:
        """Write an epoch's scalars; they can be seen at once.

        Args:
            report: The epoch's.
            at: When it ended, in seconds since 1970; None: now.

        Raises:
            StoreError: if the file cannot be written.
        """
        scalars = {
            "loss/train": report.train_loss,
            "loss/dev": report.dev.loss,
            "accuracy/train": report.train_accuracy,
            "accuracy/dev": report.dev.accuracy,
            "macro_f1/dev": report.dev.macro_f1,
            "seconds/epoch": report.seconds,
        }
        fold = "" if report.fold is None else f"fold-{report.fold + 1}"
        self._file(fold).write(self._messages.scalars(scalars, step=report.epoch, at=at))

    def finish(self, run: Run, *, at: float | None = None) -> None:
        """Write a finished run's configuration and scores.

        Raises:
            StoreError: if the file cannot be written.
        """
        scores = {
            f"{part}/{name}": run.record[part][name]
            for part in ("dev", "test")
            if run.record[part] is not None
            for name in ("accuracy", "macro_f1", "loss")
        }
        settings = {**run.config, "dataset": run.record["dataset"], "view": run.record["view"]}
        file = self._file("")
        file.write(self._messages.session_start(settings, at=at))
        file.write(self._messages.scalars(scores, step=run.record["best_epoch"], at=at))
        file.write(self._messages.session_end(at=at))

    def _file(self, part: str) -> _EventFile:
        folder = self._folder / part
        if folder not in self._files:
            self._files[folder] = _EventFile(folder, self._messages)
        return self._files[folder]


def export_logs(folder: Path, runs: Sequence[Run]) -> None:
    """Write the logs of finished runs under a folder.

    Raises:
        TrainingError: if the package ``tensorboard`` is not installed, or a run's file is
            missing or damaged.
        StoreError: if the files cannot be written.
    """
    for run in runs:
        with TensorBoardLog(folder, run.name) as log:
            at = run.details.get("finished_at")
            for record in run.history:
                # Older versions kept no accuracy of the training texts.
                log.on_epoch(EpochReport.from_record({"train_accuracy": 0.0, **record}), at=at)
            log.finish(run, at=at)


class _Messages:
    """TensorBoard's messages, made of plain values."""

    def __init__(self) -> None:
        with _required_package():
            self._event = import_module("tensorboard.compat.proto.event_pb2")
            self._summary = import_module("tensorboard.compat.proto.summary_pb2")
            self._hparams = import_module("tensorboard.plugins.hparams.plugin_data_pb2")
            stub = import_module("tensorboard.compat.tensorflow_stub.pywrap_tensorflow")
        self.checksum = stub.masked_crc32c

    def version(self) -> bytes:
        """What an event file begins with."""
        return self._bytes(None, file_version=_FILE_VERSION)

    def scalars(self, scalars: Scalars, *, step: int, at: float | None) -> bytes:
        """Values of an epoch, or of a whole run."""
        values = [
            self._summary.Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
        ]
        return self._bytes(at, step=step, summary=self._summary.Summary(value=values))

    def session_start(self, settings: Mapping[str, Any], *, at: float | None) -> bytes:
        """What was chosen."""
        content = self._hparams.HParamsPluginData()
        started = content.session_start_info
        started.start_time_secs = at or time.time()
        for name, value in settings.items():
            if isinstance(value, bool):
                started.hparams[name].bool_value = value
            elif isinstance(value, int | float):
                started.hparams[name].number_value = value
            else:
                started.hparams[name].string_value = str(value)
        return self._hparams_event(_SESSION_START, content, at)

    def session_end(self, *, at: float | None) -> bytes:
        """That it is done."""
        content = self._hparams.HParamsPluginData()
        content.session_end_info.status = _STATUS_SUCCESS
        content.session_end_info.end_time_secs = at or time.time()
        return self._hparams_event(_SESSION_END, content, at)

    def _hparams_event(self, tag: str, content: Any, at: float | None) -> bytes:
        plugin = self._summary.SummaryMetadata.PluginData(
            plugin_name=_PLUGIN, content=content.SerializeToString()
        )
        value = self._summary.Summary.Value(
            tag=tag, metadata=self._summary.SummaryMetadata(plugin_data=plugin)
        )
        # TensorBoard passes by a summary without a value: an empty tensor of floats.
        value.tensor.dtype = 1
        value.tensor.tensor_shape.dim.add(size=0)
        return self._bytes(at, summary=self._summary.Summary(value=[value]))

    def _bytes(self, at: float | None, **fields: Any) -> bytes:
        event = self._event.Event(wall_time=at or time.time(), **fields)
        content: bytes = event.SerializeToString()
        return content


class _EventFile:
    """One new event file; what is written can be read at once."""

    def __init__(self, folder: Path, messages: _Messages) -> None:
        self._checksum = messages.checksum
        with mapped_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._path = next(path for path in _names(folder) if not path.exists())
            self._file: BinaryIO = self._path.open("xb")
        self.write(messages.version())

    def write(self, event: bytes) -> None:
        """One record: length, its checksum, bytes, their checksum, as TFRecord has them."""
        header = struct.pack("<Q", len(event))
        ends = (struct.pack("<I", self._checksum(part)) for part in (header, event))
        with mapped_os_errors(self._path):
            self._file.write(header + next(ends) + event + next(ends))
            self._file.flush()

    def close(self) -> None:
        with mapped_os_errors(self._path):
            self._file.close()


def _names(folder: Path) -> Iterator[Path]:
    """TensorBoard reads the files of a folder in the order of their names."""
    stamp = f"events.out.tfevents.{int(time.time()):010}.embedcache"
    return (folder / f"{stamp}.{number}" for number in itertools.count())


@contextmanager
def _required_package() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise TrainingError(
            f"--tensorboard needs tensorboard, which cannot be imported ({one_line(error)}); run"
            " `pip install 'embedcache[tensorboard]'`"
        ) from error

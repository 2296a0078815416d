"""TensorBoard's logs, read back by TensorBoard's own reader."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnn import Run, TrainConfig, train
from cnn.events import TensorBoardLog, export_logs
from cnn.progress import EpochReport
from embedcache.errors import TrainingError

pytest.importorskip("tensorboard")

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SmallStore = Any
BASIC = TrainConfig(preset="basic", filters=4, epochs=3, batch_size=40)


def events_of(folder: Path) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (path for path in folder.iterdir() if path.is_file())
    return iter(EventFileLoader(str(path)).Load())


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.util import tensor_util

    found: dict[str, list[tuple[int, float]]] = {}
    for event in events_of(folder):
        for value in event.summary.value:
            if not value.tag.startswith("_hparams_"):
                number = float(tensor_util.make_ndarray(value.tensor))
                found.setdefault(value.tag, []).append((event.step, number))
    return found


def hparams_of(folder: Path) -> dict[str, Any]:
    from tensorboard.plugins.hparams import metadata

    found = {}
    for event in events_of(folder):
        for value in event.summary.value:
            if value.tag == metadata.SESSION_START_INFO_TAG:
                content = value.metadata.plugin_data.content
                info = metadata.parse_session_start_info_plugin_data(content)
                for name, chosen in info.hparams.items():
                    found[name] = getattr(chosen, chosen.WhichOneof("kind"))
    return found


def as_dict(points: list[tuple[int, float]]) -> dict[int, float]:
    assert len({step for step, _ in points}) == len(points)
    return dict(points)


def require_logged(folder: Path, run: Run) -> None:
    scalars = scalars_of(folder / run.name)
    wanted = {report["epoch"]: report["dev"]["accuracy"] for report in run.history}
    assert as_dict(scalars["accuracy/dev"]) == pytest.approx(wanted)
    wanted = {report["epoch"]: report["train_loss"] for report in run.history}
    assert as_dict(scalars["loss/train"]) == pytest.approx(wanted)
    best = run.record["best_epoch"]
    reached = run.record["test"]["accuracy"]
    assert as_dict(scalars["test/accuracy"]) == pytest.approx({best: reached})
    hparams = hparams_of(folder / run.name)
    assert hparams["preset"] == "basic"
    assert hparams["batch_size"] == 40
    assert hparams["length_buckets"] is False
    assert hparams["kernel_sizes"] == "[3]"
    assert hparams["dataset"] == "two"


def test_epochs_are_written_as_they_end_and_hparams_at_the_end(
    shared: SmallStore, tmp_path: Path
) -> None:
    seen: list[int] = []
    with TensorBoardLog(tmp_path, "named") as log:

        def on_epoch(report: EpochReport) -> None:
            log.on_epoch(report)
            seen.append(len(scalars_of(tmp_path / "named")["loss/dev"]))

        run = train(shared.store, "two", BASIC, name="named", on_epoch=on_epoch)
        assert seen == [1, 2, 3]
        assert hparams_of(tmp_path / "named") == {}
        log.finish(run)
    require_logged(tmp_path, run)


def test_logs_of_a_finished_run_are_written_from_its_history(
    shared: SmallStore, tmp_path: Path
) -> None:
    run = train(shared.store, "two", BASIC)
    export_logs(tmp_path, [run])
    require_logged(tmp_path, run)


def test_folds_have_folders_of_their_own(shared: SmallStore, tmp_path: Path) -> None:
    run = train(shared.store, "four", TrainConfig(preset="linear", epochs=1, folds=2))
    export_logs(tmp_path, [run])
    for fold in (1, 2):
        scalars = scalars_of(tmp_path / run.name / f"fold-{fold}")
        assert [step for step, _ in scalars["loss/dev"]] == [1]
    assert hparams_of(tmp_path / run.name)["folds"] == 2


def test_a_second_session_writes_a_file_of_its_own(two_run: Run, tmp_path: Path) -> None:
    for record in two_run.history[:2]:
        with TensorBoardLog(tmp_path, "one") as log:
            log.on_epoch(EpochReport.from_record(record))
    assert len(list((tmp_path / "one").iterdir())) == 2


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(TrainingError, match=r"pip install 'embedcache\[tensorboard\]'") as caught:
        TensorBoardLog(tmp_path, "one")
    assert "\n" not in str(caught.value)

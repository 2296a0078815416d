"""What runs in a worker of a sweep: it takes trials, trains them and tells what they gave."""

from __future__ import annotations

import logging
import os
import sys
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn.sweeps.journal import TrialResult
    from cnn.sweeps.plan import Trial
    from embedcache.store.store import FeatureStore

READY, DONE, BROKEN, STOPPED = "ready", "done", "broken", "stopped"
"""What a worker answers with: that it has begun; a `TrialResult`; why a trial broke in a way
that another try may not; an error that every other trial would meet too."""

_STATUS_ORPHANED = 3
_NAME_DIGITS = 8
_THREAD_VARIABLES = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every worker of a sweep is told.

    Attributes:
        store: The store's path.
        sweep: The sweep's name.
        dataset: The dataset's name.
        threads: That a step may compute with.
    """

    store: str
    sweep: str
    dataset: str
    threads: int


def work(connection: Connection, workplace: Workplace) -> None:
    """Train the trials that come by the connection, until it is closed.

    Keras is loaded with the first of them, and once for all.
    """
    _end_with_parent()
    limit_threads(workplace.threads)
    # Whoever began the sweep has told of texts that stand in two parts.
    logging.getLogger("cnn.leaks").setLevel(logging.ERROR)
    # Only now: whoever imports NumPy or a backend earlier has all cores for it.
    from embedcache.errors import EmbedCacheError
    from embedcache.store.store import open_store

    connection.send((READY, None))
    try:
        with open_store(workplace.store, create=False) as store:
            while True:
                connection.send(_answer(store, workplace, connection.recv()))
    except (EOFError, BrokenPipeError):
        return
    except EmbedCacheError as error:
        connection.send((STOPPED, error))


def limit_threads(count: int) -> None:
    """Let the backend that is yet to be imported compute with so many threads."""
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(count)
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")


def train_trial(store: FeatureStore, workplace: Workplace, trial: Trial) -> TrialResult:
    """Train one trial, keep its run and note it in the journal.

    Raises:
        TrainingError: if it cannot be trained.
        StoreError: if the run cannot be kept.
    """
    from cnn.backend import import_keras
    from cnn.saving import new_run_name
    from cnn.sweeps.journal import SWEEP_TAG, TRIAL_TAG, Journal, TrialResult
    from cnn.training import train

    import_keras()  # Not in the first trial's time: it takes seconds, and no other has them.
    config = trial.point.config(trial.seed)
    name = new_run_name(workplace.dataset, config.preset)
    run = train(
        store,
        f"{workplace.dataset}@{trial.version}",
        config,
        view=trial.point.view,
        # Other workers begin trials in the same second.
        name=f"{name}-{trial.digest[:_NAME_DIGITS]}",
        tags={SWEEP_TAG: workplace.sweep, TRIAL_TAG: trial.digest},
        checkpoint_every_s=None,
    )
    result = TrialResult.of_run(trial.digest, run.record)
    Journal(store, workplace.sweep).add(result)
    return result


def _answer(store: FeatureStore, workplace: Workplace, trial: Trial) -> tuple[str, Any]:
    from cnn.sweeps.journal import TrialResult
    from embedcache.errors import EmbedCacheError, KeyNotFoundError, TrainingError

    try:
        return DONE, train_trial(store, workplace, trial)
    except (TrainingError, KeyNotFoundError) as error:
        return DONE, TrialResult.failed(trial.digest, str(error))
    except EmbedCacheError as error:
        return STOPPED, error
    except Exception as error:  # the last boundary: what a backend raises costs one trial
        return BROKEN, f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        _forget_models()


def _forget_models() -> None:
    """Let Keras drop what it keeps of the models of a process."""
    if "keras" in sys.modules:
        from cnn.backend import import_keras

        import_keras().backend.clear_session()


def _end_with_parent() -> None:
    """End this process when its parent is gone: nobody would take its answers."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(_STATUS_ORPHANED)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()

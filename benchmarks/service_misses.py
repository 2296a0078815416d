"""B12: texts that the service has to compute: in batches, and one at a time."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from benchmarks.corpora import iter_texts
from benchmarks.measure import Contender, Series, WrongAnswerError, measure, ratio
from benchmarks.report import Target, named
from benchmarks.scale import Scale
from benchmarks.service_cells import FEATURES_NPZ, Question
from benchmarks.service_load import Load, LoadClient
from benchmarks.service_processes import Service

CLIENTS = 16
BATCHED = f"misses of {CLIENTS} clients, batched"
SINGLE = f"misses of {CLIENTS} clients, one at a time"
_LIMITS = {BATCHED: "", SINGLE: "batch_wait_s = 0.0\nmax_batch_tokens = 1\n"}
_DEADLINE_S = 120.0
"""A machine that is busy with other things spoils a figure; it must not end the benchmark."""


class MissingTexts:
    """A service on a copy of the store, and texts that are new to it.

    Args:
        service: A service that has nothing to do.
        client: Who asks.
        fingerprint: The view.
        texts: New texts, for all rounds.
        num_texts: For one round.
    """

    def __init__(
        self,
        service: Service,
        client: LoadClient,
        fingerprint: str,
        texts: list[str],
        num_texts: int,
    ) -> None:
        self._service = service
        self._client = client
        self._fingerprint = fingerprint
        self._texts = texts
        self._num_texts = num_texts

    def compute_first(self) -> None:
        """Have one text computed: the module is loaded, but has traced nothing."""
        self._prepare(1)
        self._client.run(Load(requests="misses", port=self._service.port, max_requests=1))

    def prepare(self, _number: int) -> None:
        """Hand the next round's texts over."""
        self._computed = self._service.total("embedcache_computed_texts_total")
        self._prepare(self._num_texts)

    def run(self, _number: int) -> float:
        """Have them computed; how many a second."""
        load = Load(
            requests="misses",
            port=self._service.port,
            connections=CLIENTS,
            min_requests=self._num_texts,
            max_requests=self._num_texts,
        )
        return self._client.run(load).requests_per_s

    def check(self, _number: int) -> None:
        """Each has been computed, and once.

        Raises:
            WrongAnswerError: if not.
        """
        computed = self._service.total("embedcache_computed_texts_total") - self._computed
        if computed != self._num_texts:
            raise WrongAnswerError(f"{computed:.0f} of {self._num_texts} texts were computed")

    def _prepare(self, count: int) -> None:
        chosen, self._texts = self._texts[:count], self._texts[count:]
        questions = [Question(self._fingerprint, [text]) for text in chosen]
        self._client.prepare("misses", [FEATURES_NPZ.request(each) for each in questions])


def measure_misses(
    store_path: Path, work: Path, client: LoadClient, fingerprint: str, scale: Scale
) -> list[Series]:
    """New texts a second, from requests to committed and answered."""
    num_texts = scale.service_miss_texts
    with ExitStack() as stack:
        contenders = []
        for seed, (name, limits) in enumerate(_LIMITS.items()):
            path = work / f"misses-{seed}"
            shutil.copytree(store_path, path / "store")
            settings = {"views": f'["{fingerprint}"]', "preload": "true"}
            limits += f"deadline_s = {_DEADLINE_S}\n"
            served = Service(path / "store", path, settings=settings, limits=limits)
            service = stack.enter_context(served)
            texts = list(iter_texts((scale.rounds + 1) * num_texts, mean_words=19, seed=100 + seed))
            new = MissingTexts(service, client, fingerprint, list(dict.fromkeys(texts)), num_texts)
            new.compute_first()
            contenders.append(
                Contender(
                    name=name,
                    role="ours" if name == BATCHED else "peer",
                    before=new.prepare,
                    run=new.run,
                    check=new.check,
                )
            )
        return measure(contenders, rounds=scale.rounds, value=lambda per_s, _seconds: per_s)


def miss_targets(series: list[Series]) -> list[Target]:
    """What batching gives; no bound was set."""
    single, batched = (named(series, name) for name in (SINGLE, BATCHED))
    return [Target(what=f"{BATCHED} ÷ one at a time", value=ratio(batched, single))]

"""B12: the service: stored features over HTTP, beside the same server answering a constant."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

import embedcache
from benchmarks.checkpoints import MINILM_PACKAGE, find_minilm
from benchmarks.corpora import iter_texts, sst2_files
from benchmarks.machine import installed_version
from benchmarks.measure import WrongAnswerError
from benchmarks.report import Report
from benchmarks.scale import Scale
from benchmarks.service_bench import Bench, Ports
from benchmarks.service_cells import INTERFACES, PEER, Cell, check_answers, draw_questions
from benchmarks.service_figures import (
    latency_table,
    latency_targets,
    peer_targets,
    rate_targets,
    texts_table,
    transfer_table,
    transfer_targets,
)
from benchmarks.service_load import LoadClient
from benchmarks.service_misses import measure_misses, miss_targets
from benchmarks.service_processes import Peer, Service
from benchmarks.service_streams import measure_streams, stream_targets
from embedcache import FeatureStore
from embedcache.corpus import CorpusOptions, CorpusReader, sources_of
from embedcache.modules.handles import DEFAULT_HANDLE

NUM_TEXTS = (1, 10, 100)
RATE_CONNECTIONS = (8, 32)
BYTES_CONNECTIONS = (1, 8)
PACKAGES = ("fastapi", "uvicorn", "orjson", "prometheus-client", "pyarrow", "httpx2")
MINILM_TEXTS = 512
DATASET = "b12"


def run(scale: Scale, work: Path) -> Report:
    """Measure it."""
    report = _empty_report()
    lacking = [package for package in PACKAGES if installed_version(package) is None]
    if lacking:
        report.skipped.append(f"all of it: not installed: {', '.join(lacking)}")
        return report
    with ExitStack() as stack:
        store: FeatureStore = stack.enter_context(embedcache.open_store(work / "store"))
        views, texts, skipped = _build_store(store, scale, work)
        report.skipped += skipped
        service = stack.enter_context(_service(store, views, work))
        peer = stack.enter_context(Peer("fastapi", store.path, views[""]))
        loopback = stack.enter_context(Peer("loopback"))
        client = stack.enter_context(LoadClient())
        bench = Bench(client, Ports(service.port, loopback.port, peer.port), scale)
        cells = _cells(views, texts, scale)
        for cell in cells:
            port = peer.port if cell.interface is PEER else service.port
            check_answers(cell, store, port)
        _measure_all(bench, cells, report)
        streams = measure_streams(store, DATASET, service.port, scale)
        report.targets += stream_targets(streams)
        _refuse_computation(service)
        if scale.service_miss_texts:
            misses = measure_misses(store.path, work, client, views[""], scale)
            report.targets += miss_targets(misses)
            streams += misses
        report.tables.append(texts_table(streams))
        report.notes += _notes(store, views, texts, scale)
    return report


def _empty_report() -> Report:
    return Report(
        number="B12",
        title="the service: stored features over HTTP",
        unit="requests/s",
        cache="warm, shards and index are in the page cache, every text is stored",
        binds="one text: what uvicorn and the middleware do for any request, which the constant"
        " shows; 100 texts: passes over the bytes: gathering, the checksum that an npz must"
        " have, and the socket",
        series=[],
    )


def _build_store(
    store: FeatureStore, scale: Scale, work: Path
) -> tuple[dict[str, str], list[str], list[str]]:
    """Views by what they are called in the table, the texts, and what is left out."""
    files, views, skipped = sst2_files(), {}, []
    if scale.use_real_data and files:
        reader = CorpusReader(sources_of(files["test"]), CorpusOptions())
        found = [text.decode() for batch in reader for text in batch.texts]
    else:
        found = list(iter_texts(scale.service_texts, mean_words=19, seed=1))
    texts = list(dict.fromkeys(found))
    (work / "texts").write_text("\0".join(texts), encoding="utf-8")
    checkpoint = find_minilm() if scale.use_real_data else None
    if checkpoint is not None:
        from embedcache.modules.convert.bert import convert_bert_checkpoint

        module = convert_bert_checkpoint(checkpoint, work / "module", max_seq_length=128).encoder
        views["MiniLM"] = _build(store, work, texts[:MINILM_TEXTS], module=str(module))
    elif scale.use_real_data:
        skipped.append(f"MiniLM: {MINILM_PACKAGE}, which holds its weights, is not installed")
    make = _build if scale.use_real_data else _import
    views[""] = make(store, work, texts)
    return views, texts, skipped


def _build(
    store: FeatureStore, work: Path, texts: Sequence[str], module: str = DEFAULT_HANDLE
) -> str:
    """Build a view of texts; its fingerprint."""
    path = _write_corpus(work, texts)
    return embedcache.build(store, path, module=module, dataset=DATASET).view


def _import(store: FeatureStore, work: Path, texts: Sequence[str]) -> str:
    """A view of random rows, one a word: for the tests, as it needs no TensorFlow."""
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((len(text.split()), 128)).astype(np.float16) for text in texts]
    np.savez(work / "rows.npz", *rows)
    path = _write_corpus(work, texts)
    return embedcache.import_features(
        store, work / "rows.npz", name="random", texts=path, dataset=DATASET
    ).view


def _write_corpus(work: Path, texts: Sequence[str]) -> Path:
    path = work / "texts.tsv"
    lines = [f"{number % 2}\t{text}\n" for number, text in enumerate(texts)]
    path.write_text("label\ttext\n" + "".join(lines), encoding="utf-8")
    return path


def _service(store: FeatureStore, views: dict[str, str], work: Path) -> Service:
    # The first is the default: /embed names none.
    listed = ", ".join(f'"{views[name]}"' for name in sorted(views))
    return Service(
        store.path,
        work / "service",
        settings={"views": f"[{listed}]"},
        limits=f"max_texts = {max(NUM_TEXTS)}\n",
    )


def _cells(views: dict[str, str], texts: Sequence[str], scale: Scale) -> list[Cell]:
    """All kinds of requests: to the service, and to the peer."""
    draw = partial(draw_questions, distinct=scale.service_distinct)
    drawn = [draw(views[""], texts, count) for count in NUM_TEXTS]
    cells = [
        Cell(interface=interface, view="", questions=questions)
        for questions in drawn
        for interface in (*INTERFACES, PEER)
    ]
    if "MiniLM" in views:
        questions = draw(views["MiniLM"], texts[:MINILM_TEXTS], max(NUM_TEXTS))
        cells += [
            Cell(interface=interface, view="MiniLM", questions=questions)
            for interface in INTERFACES
            if interface.is_binary
        ]
    return cells


def _measure_all(bench: Bench, cells: Sequence[Cell], report: Report) -> None:
    """Latencies on one connection, requests a second of one text, MB/s of a hundred."""
    of_words = [cell for cell in cells if not cell.view]
    single = [cell for cell in of_words if cell.num_texts == 1]
    large = [cell for cell in cells if cell.num_texts == 100 and cell.interface.is_binary]
    bench.measure([each for cell in of_words for each in bench.contenders(cell, 1)])
    report.series += bench.measure(
        [
            each
            for connections in RATE_CONNECTIONS
            for cell in single
            for each in bench.contenders(cell, connections)
        ]
    )
    moved = bench.measure(
        [
            each
            for connections in BYTES_CONNECTIONS
            for cell in large
            for each in bench.contenders(cell, connections, socket=True)
        ]
    )
    report.targets += [
        *latency_targets(bench, single),
        *rate_targets(report.series, single, RATE_CONNECTIONS),
        *transfer_targets(moved, large, max(BYTES_CONNECTIONS)),
        *peer_targets(bench, report.series, of_words, RATE_CONNECTIONS),
    ]
    report.tables += [
        latency_table(bench, of_words),
        transfer_table(bench, moved, large, BYTES_CONNECTIONS),
    ]


def _refuse_computation(service: Service) -> None:
    """Hits alone were asked for.

    Raises:
        WrongAnswerError: if a text has reached the module.
    """
    computed, missed = (
        service.total(f"embedcache_{name}_total") for name in ("computed_texts", "misses")
    )
    if computed or missed:
        raise WrongAnswerError(f"{missed:.0f} texts missed, {computed:.0f} were computed again")
    if not service.total("embedcache_hits_total"):
        raise WrongAnswerError("the service has counted no hits")
    if service.has_tensorflow():
        raise WrongAnswerError("the service has loaded TensorFlow for hits")


def _notes(
    store: FeatureStore, views: dict[str, str], texts: Sequence[str], scale: Scale
) -> list[str]:
    counts = {each["fingerprint"]: each for each in store.stats()["views"]}
    is_real = scale.use_real_data and bool(sst2_files())
    what = "SST-2's test texts" if is_real else "generated texts"
    held = counts[views[""]]
    notes = [
        f"{what} ({len(texts):,}, {held['tokens'] / held['texts']:.1f} tokens on average) under"
        " `builtin:en-words-128`, 128 dimensions, float16. The server, the client and what is"
        " compared are processes of their own on one machine; the client sends prepared bytes"
        " over keep-alive connections, each the next request when it has its answer.",
        "The constant is a route of the same application behind the same middleware, log and"
        " metrics: it reads the same body and answers as many bytes, made before. The bare socket"
        " answers as many bytes to as many, by `recv` and `sendall` in a thread a connection.",
        "Answers of each interface are compared with the store's rows before; the service's"
        " counters say after that no text has missed, and TensorFlow is in none of its processes.",
        f"{PEER.name}: an app of thirty lines that has the float32 rows of all texts in a dict,"
        " on uvicorn with its defaults, without keys, limits, log or metrics. Its JSON has the"
        " same numbers. /v1/embeddings and /embed answer one vector a text.",
    ]
    if "MiniLM" in views:
        held = counts[views["MiniLM"]]
        notes.append(
            f"MiniLM: the first {held['texts']:,} of the texts under all-MiniLM-L6-v2, 384"
            f" dimensions, {held['tokens'] / held['texts']:.1f} tokens on average."
        )
    return notes

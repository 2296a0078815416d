"""How large the benchmarks are: full for the figures, tiny for the test suite."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of all benchmarks.

    Attributes:
        name: ``"full"`` or ``"tiny"``.
        rounds: Rounds of each measurement; each contender is in each round.
        min_seconds: A contender repeats its work until a round of it has taken so long.
        stream_texts: B1: texts, where Kim's data sets are not beside the checkout.
        overhead_texts: B2: texts, where Kim's data sets are not beside the checkout.
        overhead_rounds: B2: rounds; an epoch's steps alone swing by some 5 %.
        contextual_texts: B3: texts of the sample.
        contextual_slice: B3: how many of them a round of a slow contender takes.
        build_texts: B4: texts of the corpus.
        slow_build_texts: B4: its first texts, for the contenders that call the module often.
        rebuild_texts: B5: texts of the corpus.
        index_keys: B6: keys that are stored.
        index_queries: B6: keys that are looked up, in each order.
        storing_texts: B7: texts of the shard, 20 tokens each on average.
        encoding_texts: B9: texts, where Kim's data sets are not beside the checkout.
        encoding_seeds: B9: trainings on each dtype of TREC and of SST-2.
        encoding_epochs: B9: epochs of each of them at most.
        memory_texts: B10: sizes of the corpora.
        startup_texts: B11: texts, where Kim's data sets are not beside the checkout.
        service_texts: B12: texts, where Kim's data sets are not beside the checkout.
        service_distinct: B12: different requests of one text; of several there are fewer.
        service_requests: B12: requests of a round of a contender, at least.
        service_seconds: B12: for how long they are sent, at least.
        service_miss_texts: B12: new texts of a round; 0: misses are not measured.
        use_real_data: Whether Kim's data sets are taken where they are there.
    """

    name: str
    rounds: int
    min_seconds: float
    stream_texts: int
    overhead_texts: int
    overhead_rounds: int
    contextual_texts: int
    contextual_slice: int
    build_texts: int
    slow_build_texts: int
    rebuild_texts: int
    index_keys: int
    index_queries: int
    storing_texts: int
    encoding_texts: int
    encoding_seeds: tuple[int, int]
    encoding_epochs: int
    memory_texts: tuple[int, ...]
    startup_texts: int
    service_texts: int
    service_distinct: int
    service_requests: int
    service_seconds: float
    service_miss_texts: int
    use_real_data: bool


FULL = Scale(
    name="full",
    rounds=7,
    min_seconds=0.2,
    stream_texts=9613,
    overhead_texts=9613,
    overhead_rounds=21,
    contextual_texts=4_032,
    contextual_slice=288,
    build_texts=100_000,
    slow_build_texts=2_000,
    rebuild_texts=1_000_000,
    index_keys=10_000_000,
    index_queries=1_000_000,
    storing_texts=25_000,
    encoding_texts=5_952,
    encoding_seeds=(5, 3),
    encoding_epochs=6,
    memory_texts=(10_000, 100_000, 1_000_000),
    startup_texts=9613,
    service_texts=1821,
    service_distinct=128,
    service_requests=20,
    service_seconds=0.07,
    service_miss_texts=48,
    use_real_data=True,
)
TINY = Scale(
    name="tiny",
    rounds=1,
    min_seconds=0.0,
    stream_texts=100,
    overhead_texts=100,
    overhead_rounds=1,
    contextual_texts=90,
    contextual_slice=40,
    build_texts=120,
    slow_build_texts=40,
    rebuild_texts=200,
    index_keys=2_000,
    index_queries=200,
    storing_texts=50,
    encoding_texts=40,
    encoding_seeds=(1, 0),
    encoding_epochs=1,
    memory_texts=(50,),
    startup_texts=50,
    service_texts=120,
    service_distinct=2,
    service_requests=2,
    service_seconds=0.0,
    # The module would be loaded in two more processes, which takes longer than all the rest.
    service_miss_texts=0,
    use_real_data=False,
)
SCALES = {scale.name: scale for scale in (FULL, TINY)}

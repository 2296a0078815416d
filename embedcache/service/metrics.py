"""What a service counts, for Prometheus. No text, key or unbounded string is a label."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

UNMATCHED = "unmatched"
"""The route of a path that there is no route for: a label must not be what somebody sent."""

# A hit takes about a millisecond, a first miss the tens of seconds in which TensorFlow loads.
_SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_BATCH_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServiceMetrics:
    """Counters of one service, on a registry of its own. Any thread."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._registry = registry
        self._requests = Counter(
            "embedcache_requests", "Requests answered.", ["method", "route", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "embedcache_request_seconds", "From a request's headers to the end of its answer.",
            ["route"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._hits = Counter(
            "embedcache_hits", "Texts that were stored.", ["view"], registry=registry
        )
        self._misses = Counter(
            "embedcache_misses", "Texts that were not stored.", ["view"], registry=registry
        )
        self._computed = Counter(
            "embedcache_computed_texts", "Texts that went through the module.", ["view"],
            registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "embedcache_batch_texts", "Texts in a batch of misses.", buckets=_BATCH_TEXTS,
            registry=registry,
        )  # fmt: skip
        self._queue = Gauge(
            "embedcache_queue_texts", "Missing texts that wait to be computed.", registry=registry
        )
        self._sent = Counter(
            "embedcache_sent_bytes", "Bytes of answers' bodies.", registry=registry
        )
        self._received = Counter(
            "embedcache_received_bytes", "Bytes of requests' bodies.", registry=registry
        )
        self._in_flight = Gauge(
            "embedcache_in_flight", "Requests that are being answered.", registry=registry
        )
        # `labels` costs more than what it returns: looked up once for each combination.
        self._of_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._of_view: dict[str, tuple[Counter, Counter]] = {}

    def watch_in_flight(self, count: Callable[[], int]) -> None:
        """Where the number of requests that are being answered is asked for."""
        self._in_flight.set_function(count)

    def end_request(
        self,
        method: str,
        route: str,
        *,
        status: int,
        seconds: float,
        received_bytes: int,
        sent_bytes: int,
    ) -> None:
        """A request has been answered, or its connection is lost.

        Args:
            method: Its method, one of HTTP's.
            route: The route's template, such as ``/v1/features/{view}/{key}``.
            status: Of the answer.
            seconds: From its headers to the end of the answer.
            received_bytes: Of its body.
            sent_bytes: Of the answer's body.
        """
        counted = self._of_request.get((method, route, status))
        if counted is None:
            counted = (
                self._requests.labels(method, route, str(status)),
                self._seconds.labels(route),
            )
            self._of_request[method, route, status] = counted
        counted[0].inc()
        counted[1].observe(seconds)
        if received_bytes:
            self._received.inc(received_bytes)
        self._sent.inc(sent_bytes)

    def count_texts(self, view: str, *, hits: int, misses: int) -> None:
        """Texts of a request that were stored under a view (its fingerprint), and were not."""
        counted = self._of_view.get(view)
        if counted is None:
            counted = self._of_view[view] = (self._hits.labels(view), self._misses.labels(view))
        counted[0].inc(hits)
        if misses:
            counted[1].inc(misses)

    def count_computed(self, view: str, num_texts: int) -> None:
        """Texts that went through the module of a view (its fingerprint)."""
        self._computed.labels(view).inc(num_texts)

    def observe_batch(self, num_texts: int) -> None:
        """A batch of misses goes to the worker."""
        self._batches.observe(num_texts)

    def set_queue(self, num_texts: int) -> None:
        """So many missing texts wait to be computed."""
        self._queue.set(num_texts)

    def render(self) -> bytes:
        """All of it, in Prometheus's text format (`content_type`)."""
        return generate_latest(self._registry)

"""B12's contenders: the service, its server's constant, a bare socket, a peer; their tallies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.measure import Contender, Role, Series, measure
from benchmarks.scale import Scale
from benchmarks.service_cells import PEER, Cell
from benchmarks.service_load import Load, LoadClient, PreparedRequest, Tally
from benchmarks.service_peers import loopback_request

CONSTANT, SOCKET = "constant", "bare socket"

_HEAD_BYTES = 200
"""Of an answer's head, about: the bare socket sends as many more."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the servers listen."""

    service: int
    loopback: int
    peer: int


@dataclass(slots=True)
class Bench:
    """The client, what it is told to do, and what it found.

    Attributes:
        client: The process that sends.
        ports: Where to.
        scale: How much.
        tallies: By contender, one a run.
    """

    client: LoadClient
    ports: Ports
    scale: Scale
    tallies: dict[str, list[Tally]] = field(default_factory=lambda: defaultdict(list))

    def contenders(self, cell: Cell, connections: int, *, socket: bool = False) -> list[Contender]:
        """The service and its limits, asked the same; or the peer alone."""
        name = full_name(cell, connections)
        if cell.interface is PEER:
            requests = [cell.interface.request(question) for question in cell.questions]
            return [self._contender(name, "peer", self.ports.peer, connections, requests)]
        requests = [cell.interface.request(question) for question in cell.questions]
        constants = [
            cell.interface.request_to(f"/constant/{size}", question)
            for question, size in zip(cell.questions, cell.answer_bytes, strict=True)
        ]
        port = self.ports.service
        found = [
            self._contender(name, "ours", port, connections, requests),
            self._contender(f"{name}: {CONSTANT}", "limit", port, connections, constants),
        ]
        if socket:
            bare = [_bare(*pair) for pair in zip(requests, cell.answer_bytes, strict=True)]
            name = f"{name}: {SOCKET}"
            found.append(self._contender(name, "limit", self.ports.loopback, connections, bare))
        return found

    def _contender(
        self,
        name: str,
        role: Role,
        port: int,
        connections: int,
        requests: Sequence[PreparedRequest],
    ) -> Contender:
        self.client.prepare(name, requests)
        load = Load(
            requests=name,
            port=port,
            connections=connections,
            seconds=self.scale.service_seconds,
            min_requests=self.scale.service_requests,
        )

        def run(_number: int) -> float:
            tally = self.client.run(load)
            self.tallies[name].append(tally)
            return tally.requests_per_s

        return Contender(name=name, role=role, run=run)

    def measure(self, contenders: Sequence[Contender]) -> list[Series]:
        """Requests a second, as the client counts them."""
        return measure(contenders, rounds=self.scale.rounds, value=lambda per_s, _seconds: per_s)

    def percentile(self, name: str, percent: float) -> float:
        """Milliseconds, over all requests of all rounds."""
        latencies = np.concatenate([tally.latencies for tally in self.tallies[name]])
        return 1000 * float(np.percentile(latencies, percent))

    def megabytes_per_s(self, name: str) -> float:
        """Of answers' bodies, the median over the rounds."""
        return float(np.median([tally.megabytes_per_s for tally in self.tallies[name]]))


def full_name(cell: Cell, connections: int) -> str:
    plural = "s" if connections > 1 else ""
    return f"{cell.name}, {connections} connection{plural}"


def _bare(request: PreparedRequest, answer_bytes: int) -> PreparedRequest:
    """The same number of bytes to and fro, without HTTP."""
    answer_bytes += _HEAD_BYTES
    return PreparedRequest(loopback_request(len(request.sent), answer_bytes), answer_bytes)

"""What a service is told: its settings, their limits, and the file that they are read from."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from embedcache.errors import ServiceError

_LIMITS_TABLE = "limits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request, and all requests together, may take.

    Attributes:
        max_body_bytes: Size of a request's body; a larger one is answered 413.
        max_texts: Texts in a request.
        max_text_bytes: UTF-8 bytes of a text.
        max_keys: Keys in a look-up or a gathering.
        max_response_bytes: Size of a gathering's answer.
        max_batch_tokens: Of a batch of misses, estimated as ``1 + bytes // 4`` of a text.
        batch_wait_s: How long a batch of misses waits for more of them.
        max_queued_texts: Missing texts that wait to be computed; more are answered 429.
        deadline_s: From a request's headers to its answer; later it is answered 504.
        read_timeout_s: In which a request's headers must have come, and then its body.
        drain_s: How long the end waits for what is in flight.
        keep_alive_s: How long an idle connection stays open.
    """

    max_body_bytes: int = 2 << 20
    max_texts: int = 32
    max_text_bytes: int = 1 << 20
    max_keys: int = 4096
    max_response_bytes: int = 64 << 20
    max_batch_tokens: int = 16384
    batch_wait_s: float = 0.005
    max_queued_texts: int = 1024
    deadline_s: float = 30.0
    read_timeout_s: float = 10.0
    drain_s: float = 30.0
    keep_alive_s: float = 5.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            lowest = 0 if item.name == "batch_wait_s" else 1 if item.type == "int" else 1e-3
            if not (math.isfinite(value) and value >= lowest):
                raise ServiceError(
                    f"{item.name} is {value}; it must be a finite number of at least {lowest}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What `embedcache serve` is told.

    Attributes:
        host: Address to listen at; another one than the loopback's needs ``api_key_file``.
        port: Port to listen at; 0: one that is free.
        views: Each ``"VIEW"`` or ``"ALIAS=VIEW"``; none: every view of the store. The first
            one, or the view of the newest dataset, is the default.
        runs: Names of the runs that predict; none: every run of the store.
        read_only: Whether misses are refused and not computed.
        api_key_file: One key a line; None: no keys, everybody on this machine may do anything.
        preload: Whether modules are loaded at start and not at the first miss.
        limits: What requests may take.
        predictor: ``"package.module:function"`` that opens the predictor of runs in a worker's
            process; None: runs do not predict.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    views: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    read_only: bool = False
    api_key_file: Path | None = None
    preload: bool = False
    limits: Limits = field(default_factory=Limits)
    predictor: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ServiceError(f"port is {self.port}; it must be 0 (any that is free) to 65535")
        if not self.host:
            raise ServiceError("host is empty; name an address such as 127.0.0.1")


def load_settings(path: Path) -> ServiceSettings:
    """The settings of a TOML file: `ServiceSettings`' names, and a table ``[limits]``.

    A relative ``api_key_file`` is beside the file itself.

    Raises:
        ServiceError: if it cannot be read; names the file and the key.
    """
    table = _parsed(path)
    limits = table.pop(_LIMITS_TABLE, {})
    if not isinstance(limits, dict):
        raise ServiceError(f"{path}: limits must be a table: [limits] on a line of its own")
    values = _checked(table, _FILE_KINDS, where=f"{path}")
    limit_kinds = {item.name: int if item.type == "int" else float for item in fields(Limits)}
    checked_limits = _checked(limits, limit_kinds, where=f"{path}, [limits]")
    if "api_key_file" in values:
        values["api_key_file"] = path.parent / Path(values["api_key_file"]).expanduser()
    try:
        return ServiceSettings(**values, limits=Limits(**checked_limits))
    except ServiceError as error:
        raise ServiceError(f"{path}: {error}") from None


# Without the predictor, which is code that is run.
_FILE_KINDS: Mapping[str, type] = {
    "host": str,
    "port": int,
    "views": tuple,
    "runs": tuple,
    "read_only": bool,
    "api_key_file": str,
    "preload": bool,
}

_KIND_NAMES = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of texts in quotes",
}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ServiceError(f"{path}: the configuration cannot be read: {reason}") from None
    except ValueError as error:  # TOML's and UTF-8's errors are both of this kind
        raise ServiceError(f"{path}: this is no TOML: {error}") from None


def _checked(table: Mapping[str, Any], kinds: Mapping[str, type], *, where: str) -> dict[str, Any]:
    """The table's values, each of its kind."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in kinds:
            raise ServiceError(
                f"{where}: there is no setting {name!r}; there are {', '.join(sorted(kinds))}"
            )
        values[name] = _of_kind(value, kinds[name])
        if values[name] is None:
            raise ServiceError(f"{where}: {name} must be {_KIND_NAMES[kinds[name]]}")
    return values


def _of_kind(value: object, kind: type) -> Any:
    """The value as what it must be, or None."""
    if kind is tuple:
        is_list = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return tuple(value) if is_list else None  # type: ignore[arg-type]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # A bool is an int to Python, and no number to a person.
    return value if type(value) is kind else None

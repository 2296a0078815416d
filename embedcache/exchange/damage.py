"""What foreign readers raise on a file that is not what it should be, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embedcache.errors import ExchangeError
from embedcache.store.publish import one_line


@contextmanager
def mapped_source_errors(
    path: str, what: str, errors: tuple[type[BaseException], ...]
) -> Iterator[None]:
    """Turn errors of reading a file into one that names it.

    Args:
        path: The file.
        what: What it should be.
        errors: What its reader raises.

    Raises:
        ExchangeError: in their place.
    """
    try:
        yield
    except FileNotFoundError:
        raise ExchangeError(f"{path}: no such file; check the path") from None
    except errors as error:
        raise ExchangeError(
            f"{path}: cannot be read as {what} ({one_line(error)}); copy it again from where it was"
            " made"
        ) from error

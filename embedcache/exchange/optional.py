"""Packages that only some exports need: one line where one of them is missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from embedcache.errors import ExchangeError
from embedcache.store.publish import one_line


def require_package(name: str, *, extra: str, what: str) -> Any:
    """Import a package.

    Args:
        name: Of the module.
        extra: The extra of embedcache that brings it.
        what: What needs it, as the message begins.

    Raises:
        ExchangeError: if it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ExchangeError(
            f"{what} needs {package}, which cannot be imported ({one_line(error)}); run"
            f" `pip install 'embedcache[{extra}]'`"
        ) from error

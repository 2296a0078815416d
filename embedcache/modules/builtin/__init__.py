"""The modules that embedcache brings along, so that a first build needs no network.

`builtin:en-words-128` names the folder `en-words-128` beside this file: a TF2 SavedModel
with the interface of `nnlm-en-dim128/2`, described in `en-words-128.md` and made by
`embedcache.modules.builtin.distill`. Importing this package does not load TensorFlow.
"""

from __future__ import annotations

from pathlib import Path

from embedcache.errors import ModuleError

__all__ = ["BUILTIN_NAMES", "builtin_path"]

BUILTIN_NAMES = ("en-words-128",)


def builtin_path(name: str) -> Path:
    """Return the folder of the SavedModel of a built-in module.

    Args:
        name: the name without its scheme, such as ``en-words-128``.

    Raises:
        ModuleError: there is no built-in module of that name.
    """
    if name not in BUILTIN_NAMES:
        raise ModuleError(f"no built-in module is named {name!r}: use {', '.join(BUILTIN_NAMES)}")
    return Path(__file__).parent / name

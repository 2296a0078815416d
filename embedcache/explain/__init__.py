"""Why a text hits or misses: under which views the store has it, and in what they differ.

The most common reason for a cache that never hits is another view of the same module: a
longest length, a layer or a dtype that is not what it was. The next one is a text that is
not the same to the byte. Only keys are looked up: a store knows no texts.
"""

from __future__ import annotations

from embedcache.explain.differences import FieldDifference, OtherView, view_differences
from embedcache.explain.hint import BuildHint, hint_of_build
from embedcache.explain.near_texts import NearText, near_texts
from embedcache.explain.texts import (
    Explanation,
    StoredVariant,
    explain_text,
    explain_texts,
    view_to_build,
)

__all__ = [
    "BuildHint",
    "Explanation",
    "FieldDifference",
    "NearText",
    "OtherView",
    "StoredVariant",
    "explain_text",
    "explain_texts",
    "hint_of_build",
    "near_texts",
    "view_differences",
    "view_to_build",
]

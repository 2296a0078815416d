"""The views that a sweep compares: those that it names, or those with the layers it names."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from embedcache.errors import UnknownNameError
from embedcache.store.database.records import ViewRecord
from embedcache.store.dataset import Dataset
from embedcache.store.store import FeatureStore
from embedcache.view import MAX_TOKENS_DEFAULT, FeatureView

_OWN_OUTPUT = "the module's own"


@dataclass(frozen=True, slots=True)
class NamedView:
    """A view, and what a sweep calls it.

    Attributes:
        view: Its fingerprint.
        label: ``{"view": …}`` or ``{"layer": …}`` as it was asked for; empty if it was not.
    """

    view: str
    label: dict[str, str]


def views_of_names(store: FeatureStore, prefixes: Sequence[str]) -> list[NamedView]:
    """The views whose fingerprints begin so.

    Raises:
        UnknownNameError: if none does, or several; lists those there are.
    """
    found = [store.catalog.find_view(prefix).fingerprint for prefix in prefixes]
    return [NamedView(view, {"view": view[:12]}) for view in found]


def views_of_layers(
    store: FeatureStore, dataset: Dataset, layers: Sequence[str]
) -> list[NamedView]:
    """The views of a dataset's module that have these layers and hold the dataset.

    The module is that of the view the dataset was last built under. Where several views have
    a layer, it is the one that differs from that view in nothing else.

    Args:
        store: An open store.
        dataset: The dataset.
        layers: As ``build --layer`` has them, with ``+`` between layers side by side: ``3``,
            ``3+4``, ``mean``, ``all``, ``mean:3+4``.

    Raises:
        UnknownNameError: if there is no such view; says how to build it.
    """
    base = store.view_of_dataset(dataset)
    kin = [
        record
        for record in store.catalog.views()
        if record.view.module_digest == base.view.module_digest
        and bool(store.reader(record).contains(dataset.keys).all())
    ]
    return [
        NamedView(_view_of_layer(store, dataset, base, kin, layer).fingerprint, {"layer": layer})
        for layer in layers
    ]


def build_command(store: FeatureStore, dataset: Dataset, base: ViewRecord, layer: str) -> str:
    """The command that builds a dataset with another layer of the module of one of its views."""
    found = store.catalog.find_dataset(f"{dataset.name}@{dataset.version}")
    sources = [
        f"{source['split']}={source['path']}" if source.get("split") else str(source["path"])
        for source in found.sources
    ]
    view = base.view
    options = {
        "--module": base.handle or "HANDLE",
        "--preprocess": base.preprocess,
        "--layer": layer,
        "--dataset": dataset.name,
        "--max-tokens": str(view.max_tokens) if view.max_tokens != MAX_TOKENS_DEFAULT else "",
        "--overflow": view.overflow if view.overflow != "truncate" else "",
        "--dtype": view.dtype if view.dtype != "float16" else "",
    }
    words = [word for name, value in options.items() if value for word in (name, value)]
    if view.keep_special_tokens:
        words.append("--keep-special-tokens")
    return f"embedcache build {shlex.join([*(sources or ['CORPUS']), *words])}"


def _view_of_layer(
    store: FeatureStore,
    dataset: Dataset,
    base: ViewRecord,
    kin: Sequence[ViewRecord],
    layer: str,
) -> ViewRecord:
    fitting = [record for record in kin if _has_output(record.view, layer)]
    if len(fitting) > 1:
        alike = [record for record in fitting if _but_for_layers(record.view, base.view)]
        fitting = alike or fitting
    if len(fitting) == 1:
        return fitting[0]
    module = base.handle or base.view.module_digest[:12]
    if fitting:
        several = ", ".join(f"{_shown(record)}" for record in fitting)
        raise UnknownNameError(
            f"layer {layer!r} of {module} is in several views that hold dataset"
            f" {dataset.name!r}: {several}; name views instead, with --grid view=V,V"
        )
    outputs = ", ".join(record.view.output or _OWN_OUTPUT for record in kin)
    command = build_command(store, dataset, base, layer.replace("+", ","))
    raise UnknownNameError(
        f"no view of {module} that holds dataset {dataset.name!r} has the layer {layer!r}; there"
        f" are: {outputs}; build it with `{command}`"
    )


def _has_output(view: FeatureView, layer: str) -> bool:
    wanted = layer.replace("+", ",")
    # `mean` and `all` alone are of all layers that the module has, which the view spells out.
    return view.output == wanted or view.output.startswith(f"{wanted}:")


def _but_for_layers(view: FeatureView, base: FeatureView) -> bool:
    """Whether two views differ in what layers are read, and in nothing else."""
    same = replace(base, output=view.output, dim=view.dim, num_layers=view.num_layers)
    return same == view


def _shown(record: ViewRecord) -> str:
    return f"{record.fingerprint[:12]} ({record.view.output}, {record.view.dtype})"

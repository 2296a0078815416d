"""Which layers of a module become a row: one, several side by side, their mean, or all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedcache.errors import ModuleError
from embedcache.modules.facts import Layer, ModuleFacts

MEAN = "mean"
ALL = "all"
LAST = "last"


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What of a module's outputs a row is made of.

    Attributes:
        layers: In the order in which they lie side by side.
        mode: ``"mean"`` or ``"all"``; empty: side by side, or only one.
    """

    layers: tuple[Layer, ...]
    mode: str = ""

    @property
    def output(self) -> str:
        """The choice as the view's ``output`` says it: ``"3"``, ``"3,4"``, ``"mean:1,2"``."""
        names = ",".join(layer.name for layer in self.layers)
        return f"{self.mode}:{names}" if self.mode else names

    @property
    def dim(self) -> int:
        """The width of a row."""
        widest = max(layer.dim for layer in self.layers)
        if self.mode == MEAN:
            return widest
        if self.mode == ALL:
            return widest * len(self.layers)
        return sum(layer.dim for layer in self.layers)

    @property
    def num_layers(self) -> int:
        """Layers that a trainer may mix."""
        return len(self.layers) if self.mode == ALL else 1

    def combine(self, outputs: Mapping[str, Any]) -> Any:
        """Per-token tensors by layer → one tensor, (B, L, dim); inside TensorFlow's graph.

        For a mean, or where layers are kept apart, one that is narrower is repeated up to
        the widest, as ELMo's own mix does with its word embeddings (Peters et al. 2018).
        """
        import tensorflow as tf

        tensors = [outputs[layer.name] for layer in self.layers]
        if self.mode:
            widest = max(layer.dim for layer in self.layers)
            tensors = [
                tf.tile(tensor, [1, 1, widest // layer.dim]) if layer.dim < widest else tensor
                for tensor, layer in zip(tensors, self.layers, strict=True)
            ]
        tensors = [tf.cast(tensor, tf.float32) for tensor in tensors]
        if self.mode == MEAN:
            return tf.add_n(tensors) / float(len(tensors))
        return tensors[0] if len(tensors) == 1 else tf.concat(tensors, axis=-1)


def choose_layers(handle: str, facts: ModuleFacts, wanted: str | None) -> LayerChoice:
    """Read what ``--layer`` asks for, or what a view says.

    Args:
        handle: The module's, for messages.
        facts: What its probe found.
        wanted: None or ``last``: the module's own output; ``3``, ``-1`` (from the top);
            ``3,4``; ``mean``, ``all``, of all layers or as in ``mean:3,4``.

    Raises:
        ModuleError: if there are no such layers; lists those there are.
    """
    known = {layer.name: layer for layer in (*facts.layers, *facts.outputs)}
    if wanted is None or wanted == LAST:
        return LayerChoice((known[facts.output],))
    mode, _, names = wanted.partition(":")
    if mode not in (MEAN, ALL):
        mode, names = "", wanted
    if mode and not names:
        chosen = facts.layers
        if not chosen:
            raise ModuleError(
                f"{handle}: its layers cannot be had one by one, so --layer {mode} cannot be; it"
                f" has {layer_names(list(known.values()))}"
            )
    else:
        chosen = tuple(_find(handle, facts, name.strip(), known) for name in names.split(","))
    choice = LayerChoice(tuple(chosen), mode)
    _check_widths(handle, choice)
    return choice


def _find(handle: str, facts: ModuleFacts, name: str, known: Mapping[str, Layer]) -> Layer:
    if name == LAST:
        name = facts.output
    if name.startswith("-") and name[1:].isdecimal():
        place = int(name)
        if -len(facts.layers) <= place < 0:
            return facts.layers[place]
    if name not in known:
        mixes = f", and {MEAN}, {ALL}" if facts.layers else ""
        raise ModuleError(
            f"{handle}: no layer {name!r}; there are: {layer_names(list(known.values()))}{mixes}"
        )
    return known[name]


def _check_widths(handle: str, choice: LayerChoice) -> None:
    if not choice.mode:
        return
    widest = max(layer.dim for layer in choice.layers)
    narrow = [layer for layer in choice.layers if widest % layer.dim]
    if narrow:
        raise ModuleError(
            f"{handle}: layer {narrow[0].name} is {narrow[0].dim} wide, the widest {widest}, which"
            f" is no multiple of it; name layers of one width with --layer {choice.mode}:…"
        )


def layer_names(layers: Sequence[Layer]) -> str:
    """``1 to 12, sequence_output``: short where layers are numbered."""
    numbers = [layer.name for layer in layers if layer.name.isdecimal()]
    others = [layer.name for layer in layers if not layer.name.isdecimal()]
    shown = [f"{numbers[0]} to {numbers[-1]}"] if len(numbers) > 1 else numbers
    return ", ".join(shown + others) or "none"

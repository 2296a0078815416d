"""The options of `train`, and the configuration that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from cnn.config import TrainConfig

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OPTIONS = [
    click.option("--preset", type=click.Choice(["kim", "basic", "linear"]), default="kim",
                 show_default=True, help="kim: widths 3, 4, 5 x 100 filters. basic: width 3 x 64,"
                 " dense 16. linear: mean over time, softmax."),
    click.option("--embedding", type=click.Choice(["static", "rand", "nonstatic", "multichannel"]),
                 default="static", show_default=True, help="A token's vector: the cached one, a"
                 " random one that is trained, the cached one trained on, or both side by side."
                 " All but static need a view with a dictionary."),
    click.option("--epochs", type=click.IntRange(1), help="Passes over the training texts, at"
                 " most."),
    click.option("--batch-size", type=click.IntRange(1), help="Texts in a step."),
    click.option("--batch-tokens", type=click.IntRange(8), help="Tokens in a step at most, padding"
                 " counted."),
    click.option("--length-buckets", is_flag=True, help="Texts of like length share batches: less"
                 " padding."),
    click.option("--optimizer", type=click.Choice(["adam", "adadelta"]), default="adam",
                 show_default=True, help="Kim's is adadelta."),
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate."),
    click.option("--max-norm", type=click.FloatRange(0), help="Largest norm of a class's weights;"
                 " 0: none.  [default: 3 with kim, else 0]"),
    click.option("--dropout", type=click.FloatRange(0, 1, max_open=True),
                 help="Share of the pooled features that a step drops."),
    click.option("--kernel-sizes", metavar="N,N...", help="Widths of the convolutions, in tokens."),
    click.option("--filters", type=click.IntRange(1), help="Filters of each width."),
    click.option("--class-weights", type=click.Choice(["none", "balanced"]), default="none",
                 show_default=True, help="balanced: rare classes weigh more in the loss."),
    click.option("--task", type=click.Choice(["auto", "single", "multilabel"]), default="auto",
                 show_default=True, help="One label a text, or any number; auto: by the corpus."),
    click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
                 help="What weights, dropout, order and splits depend on."),
    click.option("--folds", type=click.IntRange(2), help="Cross-validate over so many folds."),
    click.option("--dev-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True),
                 default=0.1, show_default=True, help="Share of the training texts to choose the"
                 " epoch by, where the dataset has no dev split."),
    click.option("--patience", type=click.IntRange(1),
                 help="Epochs without a better dev accuracy before stopping."),
    click.option("--on-leak", type=click.Choice(["warn", "drop", "error"]), default="warn",
                 show_default=True, help="What to do about dev and test texts that train has too:"
                 " drop takes them out of train."),
    click.option("--near-duplicates", type=click.FloatRange(0, 1, min_open=True), metavar="COSINE",
                 help="Count texts as the same whose pooled vectors are so alike."),
]  # fmt: skip

CONFIG_FIELDS = frozenset(
    {
        "preset", "embedding", "epochs", "batch_size", "batch_tokens", "length_buckets",
        "optimizer", "lr", "max_norm", "dropout", "kernel_sizes", "filters", "class_weights",
        "task", "seed", "folds", "dev_fraction", "patience", "on_leak", "near_duplicates",
    }
)  # fmt: skip


def config_options(function: _Function) -> _Function:
    """Give a command an option for each field of `cnn.TrainConfig`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def make_config(
    settings: Mapping[str, Any], *, base: Mapping[str, Any] | None = None
) -> TrainConfig:
    """The configuration of `config_options`' values.

    Args:
        settings: Values of options, by name.
        base: Fields of a configuration that they replace; None: the defaults.

    Raises:
        click.UsageError: if a value is not legal.
    """
    from cnn.config import TrainConfig

    chosen = dict(settings)
    if "lr" in chosen:
        chosen["learning_rate"] = chosen.pop("lr")
    sizes = chosen.get("kernel_sizes")
    if sizes is not None:
        try:
            chosen["kernel_sizes"] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            raise click.UsageError(
                f"--kernel-sizes must be whole numbers with commas between them: got {sizes!r}"
            ) from None
    try:
        return TrainConfig(**{**(base or {}), **chosen})
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def given_settings(context: click.Context) -> dict[str, Any]:
    """The values of `config_options` that were given, none that are defaults."""
    source = click.core.ParameterSource.COMMANDLINE
    return {
        name: value
        for name, value in context.params.items()
        if name in CONFIG_FIELDS and context.get_parameter_source(name) is source
    }

"""`embedcache train`: a classifier on features that are already there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.common import json_option, open_user_store, percent, print_json, read_lines

if TYPE_CHECKING:
    from cnn.config import TrainConfig
    from cnn.fitting import EpochReport


@click.command("train")
@click.argument("dataset", required=False)
@click.option("--view", metavar="VIEW", help="Fingerprint, or its beginning.  [default: the view"
              " that the dataset was last built under]")  # fmt: skip
@click.option("--preset", type=click.Choice(["kim", "basic"]), default="kim", show_default=True,
              help="kim: widths 3, 4, 5 x 100 filters. basic: width 3 x 64, dense 16.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training texts, at most.")
@click.option("--batch-size", type=click.IntRange(1), help="Texts in a step.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate of Adam.")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True),
              help="Share of the pooled features that a step drops.")  # fmt: skip
@click.option("--kernel-sizes", metavar="N,N...", help="Widths of the convolutions, in tokens.")
@click.option("--filters", type=click.IntRange(1), help="Filters of each width.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="What weights, dropout, order and splits depend on.")  # fmt: skip
@click.option("--folds", type=click.IntRange(2), help="Cross-validate over so many folds.")
@click.option("--dev-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              default=0.1, show_default=True, help="Share of the training texts to choose the"
              " epoch by, where the dataset has no dev split.")  # fmt: skip
@click.option("--patience", type=click.IntRange(1),
              help="Epochs without a better dev accuracy before stopping.")  # fmt: skip
@click.option("--labels", type=click.Path(), metavar="FILE",
              help="One label a line, in the order of the corpus.")  # fmt: skip
@json_option
@click.pass_context
def command(
    context: click.Context, /, dataset: str | None, view: str | None, labels: str | None,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Train a Conv1D classifier on the stored features of DATASET.

    Without DATASET: the one that was registered last. The module is never touched.
    """
    config = _config(settings)
    from cnn.training import train

    given = None if labels is None else [label.strip() for label in read_lines(labels)]
    with open_user_store(context) as store:
        run = train(
            store, dataset, config, view=view, labels=given,
            on_epoch=None if as_json else _print_epoch,
        )  # fmt: skip
    print_json(run.record) if as_json else _print_run(run.record)


def _config(settings: dict[str, Any]) -> TrainConfig:
    from cnn.config import TrainConfig

    chosen = dict(settings)
    chosen["learning_rate"] = chosen.pop("lr")
    sizes = chosen["kernel_sizes"]
    if sizes is not None:
        try:
            chosen["kernel_sizes"] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            raise click.UsageError(
                f"--kernel-sizes must be whole numbers with commas between them: got {sizes!r}"
            ) from None
    try:
        return TrainConfig(**chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _print_epoch(report: EpochReport) -> None:
    fold = "" if report.fold is None else f"fold {report.fold + 1}, "
    best = "  *" if report.is_best else ""
    click.echo(
        f"{fold}epoch {report.epoch:2}: loss {report.train_loss:.4f},"
        f" dev loss {report.dev.loss:.4f}, dev accuracy {percent(report.dev.accuracy)},"
        f" {report.seconds:.1f} s{best}",
        err=True,
    )


def _print_run(record: dict[str, Any]) -> None:
    for part in ("dev", "test"):
        scores = record[part]
        if scores is not None:
            click.echo(
                f"{part:4}  accuracy {percent(scores['accuracy'])},"
                f" macro-F1 {percent(scores['macro_f1'])}, loss {scores['loss']:.4f}"
            )
    if record["folds"] is not None:
        click.echo(f"means over {len(record['folds'])} folds")
    click.echo(
        f"{record['epochs']} epochs, the best {record['best_epoch']};"
        f" {record['seconds']:.1f} s, {record['seconds_per_epoch']:.2f} s an epoch,"
        f" waited for input {percent(record['input_overhead'])} of the step time"
    )
    click.echo(f"run {record['run']}")

"""`embedcache train`: a classifier on features that are already there."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.common import json_option, open_user_store, percent, print_json, read_lines
from cli.interrupts import StepInterrupts
from cli.train_options import CONFIG_FIELDS, config_options, given_settings, make_config
from cli.warnings_log import shown_warnings

if TYPE_CHECKING:
    from cnn.progress import EpochReport, StepReport
    from cnn.run import Run
    from embedcache.store.store import FeatureStore

_LAST = "last"
_STATUS_INTERRUPTED = 130
_LOGGERS = ("cnn.leaks", "cnn.resuming")


@click.command("train")
@click.argument("dataset", required=False)
@click.option("--view", metavar="VIEW", help="Fingerprint, or its beginning.  [default: the view"
              " that the dataset was last built under]")  # fmt: skip
@config_options
@click.option("--labels", type=click.Path(), metavar="FILE",
              help="One label a line, in the order of the corpus.")  # fmt: skip
@click.option("--name", metavar="NAME", help="What the run is called.  [default: time, dataset,"
              " preset]")  # fmt: skip
@click.option("--resume", is_flag=False, flag_value=_LAST, metavar="[NAME]", help="Go on with an"
              " unfinished training, by default the newest; options that are given must be what"
              " they were.")  # fmt: skip
@click.option("--tensorboard", type=click.Path(), metavar="DIR",
              help="Write TensorBoard's logs into this folder.")  # fmt: skip
@json_option
@click.pass_context
def command(
    context: click.Context, /, dataset: str | None, view: str | None, labels: str | None,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Train a classifier on the stored features of DATASET.

    Without DATASET: the one that was registered last. The module is never touched. A training
    that was interrupted or killed goes on with --resume.
    """
    resume, tensorboard = settings["resume"], settings["tensorboard"]
    chosen = {name: settings[name] for name in CONFIG_FIELDS}
    arguments: dict[str, Any] = {"view": view, "resume": resume, "name": settings["name"]}
    if labels is not None:
        arguments["labels"] = [label.strip() for label in read_lines(labels)]
    config = make_config(chosen)
    with open_user_store(context) as store:
        if resume is not None:
            arguments |= _resumed(store, resume, given_settings(context))
        else:
            arguments |= {"config": config, "name": _run_name(store, dataset, settings)}
        try:
            run = _train(store, dataset, arguments, tensorboard, as_json=as_json)
        except KeyboardInterrupt:
            line = _how_to_resume(store, arguments["resume"] or arguments["name"])
            if line is None:
                raise
            click.echo(line, err=True)
            context.exit(_STATUS_INTERRUPTED)
    print_json(run.record) if as_json else _print_run(run)


def _run_name(store: FeatureStore, dataset: str | None, settings: dict[str, Any]) -> str:
    """The name that was given, or a new one: it is told if the training is interrupted."""
    from cnn.saving import new_run_name

    given: str | None = settings["name"]
    found = store.catalog.find_dataset(dataset)
    return new_run_name(found.name, settings["preset"]) if given is None else given


def _resumed(store: FeatureStore, resume: str, given: dict[str, Any]) -> dict[str, Any]:
    """The unfinished training's whole name; its configuration with what is given now."""
    from cnn.checkpoints import find_unfinished

    found = find_unfinished(store, resume)
    return {"resume": found.run, "config": make_config(given, base=found.about["config"])}


def _train(
    store: FeatureStore,
    dataset: str | None,
    arguments: dict[str, Any],
    tensorboard: str | None,
    *,
    as_json: bool,
) -> Run:
    from cnn.training import train

    with ExitStack() as stack:
        log = None
        if tensorboard is not None:
            from cnn.events import TensorBoardLog

            name = arguments["resume"] or arguments["name"]
            log = stack.enter_context(TensorBoardLog(Path(tensorboard).expanduser(), name))
        progress = None
        if not as_json:
            from cli.training_progress import TrainingProgress

            folds = arguments["config"].folds
            progress = stack.enter_context(TrainingProgress(folds=folds))
        stack.enter_context(shown_warnings(*_LOGGERS))
        interrupts = stack.enter_context(StepInterrupts())

        def on_step(report: StepReport) -> None:
            if progress is not None:
                progress.on_step(report)
            interrupts.check()

        def on_epoch(report: EpochReport) -> None:
            for shown in (progress, log):
                if shown is not None:
                    shown.on_epoch(report)

        run = train(store, dataset, on_step=on_step, on_epoch=on_epoch, **arguments)
        if log is not None:
            log.finish(run)
    return run


def _how_to_resume(store: FeatureStore, name: str) -> str | None:
    from cnn.checkpoints import list_unfinished

    for each in list_unfinished(store):
        if each.run == name:
            fit = each.state.get("fit")
            epoch = 1 if fit is None else len(fit["history"]) + 1
            return (
                f"interrupted in epoch {epoch}: what was done is kept; go on with `embedcache train"
                f" --resume {name}`"
            )
    return None


def _print_run(run: Run) -> None:
    record, cost = run.record, run.cost
    for part in ("dev", "test"):
        scores = record[part]
        if scores is not None:
            low, high = scores["accuracy_interval"]
            click.echo(
                f"{part:4}  accuracy {percent(scores['accuracy'])}"
                f" (95 %: {percent(low)} to {percent(high)}),"
                f" macro-F1 {percent(scores['macro_f1'])}, loss {scores['loss']:.4f}"
            )
    if record["folds"] is not None:
        click.echo(f"means over {len(record['folds'])} folds")
    click.echo(
        f"{record['epochs']} epochs, the best {record['best_epoch']};"
        f" {record['seconds']:.1f} s, {record['seconds_per_epoch']:.2f} s an epoch,"
        f" waited for input {percent(record['input_overhead'])} of the step time"
    )
    in_loop = cost["in_loop"]
    if in_loop["ratio"] is not None:
        click.echo(
            f"with the module in the loop: about {in_loop['seconds']:,.0f} s,"
            f" {in_loop['ratio']:.1f} times as long"
        )
    click.echo(f"run {record['run']}")

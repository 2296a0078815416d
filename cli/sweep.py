"""`embedcache sweep`: many trainings, and one leaderboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.common import json_option, open_user_store, percent, plural, print_json, print_table

if TYPE_CHECKING:
    from cnn.sweeps.leaderboard import Leaderboard, LeaderboardRow
    from cnn.sweeps.student import Estimate
    from cnn.sweeps.sweeping import SweepOptions, SweepProgress

_LAST = ""


@click.command("sweep")
@click.argument("dataset", required=False)
@click.option("--grid", multiple=True, metavar="NAME=V,V...", help="Values of a field of the"
              " configuration, of view or of layer; again for several. kernel_sizes=3+4+5,2;"
              " with --random also LOW..HIGH.")  # fmt: skip
@click.option("--random", type=click.IntRange(1), metavar="N",
              help="Draw N points of the grid instead of training all.")  # fmt: skip
@click.option("--random-seed", type=click.IntRange(0), default=0, show_default=True,
              help="What the draws depend on.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), metavar="K",
              help="Trainings of each point, with seeds from 0.  [default: 1]")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="Trainings at a time, each in its process with its share of the"
              " cores.")  # fmt: skip
@click.option("--name", help="What the sweep is called.  [default: by time and dataset]")
@click.option("--resume", is_flag=False, flag_value=_LAST, metavar="[NAME]", help="Go on with a"
              " sweep, by default the last one, and add what it lacks of --grid and"
              " --seeds.")  # fmt: skip
@click.option("--retry-failed", is_flag=True, help="With --resume: try again what has failed.")
@click.option("--baselines/--no-baselines", default=True, show_default=True, help="Compare with the"
              " majority class, logistic regression and a random embedding.")  # fmt: skip
@click.option("--show", is_flag=False, flag_value=_LAST, metavar="[NAME]", help="Only show what a"
              " sweep, by default the last one, has given by now.")  # fmt: skip
@json_option
@click.pass_context
def command(
    context: click.Context, /, dataset: str | None, grid: tuple[str, ...], show: str | None,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Train many configurations on DATASET and compare them.

    Every training is a run of the store. What is done is kept as it is done; --resume goes on
    with what is missing. Points are ordered by their mean on dev; test scores choose nothing.
    """
    from cnn.sweeps.sweeping import load_leaderboard

    if show is not None:
        if dataset is not None or grid or settings["resume"] is not None:
            raise click.UsageError("--show trains nothing: leave DATASET, --grid and --resume out")
        with open_user_store(context) as store:
            board = load_leaderboard(store, show)
    else:
        board = _sweep(context, dataset, grid, settings)
    print_json(board.to_record()) if as_json else print_leaderboard(board)


def _sweep(
    context: click.Context, dataset: str | None, grid: tuple[str, ...], settings: dict[str, Any]
) -> Leaderboard:
    from cnn.sweeps.grid import parse_grid
    from cnn.sweeps.sweeping import sweep

    try:
        parsed, options = parse_grid(grid), _options(settings)
        with open_user_store(context) as store:
            return sweep(store, dataset, parsed, options=options, on_trial=print_trial)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _options(settings: dict[str, Any]) -> SweepOptions:
    from cnn.sweeps.sweeping import SweepOptions

    return SweepOptions(**settings)


def print_trial(progress: SweepProgress) -> None:
    """One line for a training that is done, on standard error."""
    from cnn.sweeps.grid import show_value
    from cnn.sweeps.leaderboard import BASELINE_NAMES

    point, result = progress.trial.point, progress.result
    settings = [f"{name}={show_value(value)}" for name, value in point.shown.items()]
    what = [BASELINE_NAMES[point.baseline]] if point.baseline else settings
    place = f"[{progress.finished}/{progress.total}]"
    line = " ".join([place, *what, f"seed {progress.trial.seed}:"])
    if not result.is_done or result.dev is None:
        click.echo(f"{line} failed: {result.reason}", err=True)
        return
    test = f", test {percent(result.test['accuracy'])}" if result.test else ""
    dev = percent(result.dev["accuracy"])
    click.echo(f"{line} dev {dev}{test}, {result.seconds:.1f} s", err=True)


def print_leaderboard(board: Leaderboard) -> None:
    """The table, and what is to be said about it."""
    names = list(dict.fromkeys(name for row in board.rows for name in row.differing))
    has_test = any(row.test for row in board.rows)
    header = ["dev", "95 % interval", *(["test"] if has_test else []), "s", "seeds", *names]
    rows = [_cells(row, names, has_test=has_test) for row in board.rows]
    print_table(rows, [*header, ""])
    for row in board.rows:
        for seed, reason in row.failures.items():
            click.echo(f"failed: {_shown(row)} seed {seed}: {reason}")
    for note in board.notes:
        click.echo(note)
    left = f", {board.missing:,} left (--resume {board.sweep})" if board.missing else ""
    failed = f", {board.failed:,} failed" if board.failed else ""
    click.echo(
        f"sweep {board.sweep} of {board.dataset}@{board.version[:12]}:"
        f" {plural(board.done, 'training')} done{failed}{left}"
    )


def _cells(row: LeaderboardRow, names: list[str], *, has_test: bool) -> list[str]:
    from cnn.sweeps.grid import show_value
    from cnn.sweeps.leaderboard import BASELINE_NAMES

    return [
        *score_cells(row.dev, row.test, has_test=has_test),
        f"{row.seconds:.1f}" if row.runs else "-",
        str(len(row.runs)) if row.view else "-",
        *(show_value(row.differing[name]) if name in row.differing else "-" for name in names),
        BASELINE_NAMES[row.baseline] if row.baseline else "",
    ]


def score_cells(dev: Estimate | None, test: Estimate | None, *, has_test: bool) -> list[str]:
    """Dev, its interval and perhaps test, as cells of a table."""
    interval = dev.interval if dev else None
    # Of few seeds the formula goes beyond what an accuracy can be; JSON has it as it is.
    low, high = (min(max(end, 0.0), 1.0) for end in interval) if interval else (0.0, 0.0)
    shown = f"{100 * low:.1f} to {100 * high:.1f}" if interval else "-"
    return [_score(dev), shown, *([_score(test)] if has_test else [])]


def _score(score: Estimate | None) -> str:
    if score is None:
        return "-"
    deviation = "" if score.deviation is None else f" ± {100 * score.deviation:.1f}"
    return f"{percent(score.mean)}{deviation}"


def _shown(row: LeaderboardRow) -> str:
    from cnn.sweeps.grid import show_value
    from cnn.sweeps.leaderboard import BASELINE_NAMES

    settings = " ".join(f"{name}={show_value(value)}" for name, value in row.settings.items())
    return BASELINE_NAMES[row.baseline] if row.baseline else settings or "the defaults"

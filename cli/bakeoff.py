"""`embedcache bakeoff`: several modules on a part of a corpus, the whole for the best."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.common import (
    format_bytes,
    json_option,
    open_user_store,
    percent,
    plural,
    print_json,
    print_table,
)
from cli.corpus_options import corpus_options, read_options
from cli.sweep import print_trial, score_cells
from cli.view_options import VIEW_SETTINGS, view_options

if TYPE_CHECKING:
    from cnn.sweeps.bakeoff.contest import BakeoffOptions, BakeoffReport, BakeoffRow

_SEVERAL = ("module", "layer")
_BUILD_SETTINGS = tuple(
    name for name in ("preprocess", *VIEW_SETTINGS, "batch_tokens") if name not in _SEVERAL
)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _shared_view_options(function: _Function) -> _Function:
    """The options of a view but for those of which a bake-off takes several."""
    own: list[click.Parameter] = list(getattr(function, "__click_params__", []))
    decorated = view_options(function)
    parameters = decorated.__click_params__  # type: ignore[attr-defined]
    parameters[:] = [each for each in parameters if each in own or each.name not in _SEVERAL]
    return decorated


@click.command("bakeoff")
@click.argument("corpus", nargs=-1, required=True, metavar="[SPLIT=]PATH...")
@click.option("--module", "modules", multiple=True, required=True, metavar="HANDLE",
              help="A module to try, as `build` takes it; again for others.")  # fmt: skip
@click.option("--layer", "layers", multiple=True, metavar="L[,L...]|mean|all", help="Layers to try"
              " of each module that has some; again for others.  [default: the module's"
              " output]")  # fmt: skip
@_shared_view_options
@click.option("--sample", type=click.IntRange(1), default=1000, show_default=True, metavar="N",
              help="Documents that all modules are tried on.")  # fmt: skip
@click.option("--sample-seed", type=click.IntRange(0), default=0, show_default=True,
              help="What the choice of these depends on.")  # fmt: skip
@click.option("--keep", type=click.IntRange(1), default=1, show_default=True, metavar="K",
              help="Candidates for which the whole corpus is built.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, metavar="S",
              help="Trainings of each.")  # fmt: skip
@click.option("--grid", multiple=True, metavar="NAME=V,V...", help="As in `sweep`: a candidate is"
              " as good as the best point.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="Trainings at a time.")  # fmt: skip
@click.option("--dataset", metavar="NAME", help="Name to register the corpus under.  [default: as"
              " `build` has it]")  # fmt: skip
@corpus_options()
@click.option("--batch-tokens", type=click.IntRange(1), default=4096, show_default=True,
              help="Tokens that a contextual module gets at once.")  # fmt: skip
@json_option
@click.pass_context
def command(
    context: click.Context, /, corpus: tuple[str, ...], modules: tuple[str, ...],
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Compare modules on a part of a corpus, and build the whole only for the best.

    The part has each label of each split in proportion. Candidates are ordered by their mean
    on its dev documents; test scores choose nothing. What was computed for the part is not
    computed again for the whole, and the same command goes on where it was ended.
    """
    from cnn.sweeps.bakeoff.contest import BakeoffListener, bakeoff
    from embedcache.corpus import parse_sources

    sources = parse_sources(corpus)
    try:
        options = _options(settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    listener = BakeoffListener(
        on_stage=lambda line: click.echo(line, err=True), on_trial=print_trial
    )
    with open_user_store(context, create=True) as store:
        report = bakeoff(store, sources, modules, options=options, listener=listener)
    print_json(report.to_record()) if as_json else _print_report(report)


def _options(settings: dict[str, Any]) -> BakeoffOptions:
    from cnn.sweeps.bakeoff.contest import BakeoffOptions
    from cnn.sweeps.grid import parse_grid
    from embedcache.precompute import BuildOptions

    return BakeoffOptions(
        **{
            name: settings[name]
            for name in ("layers", "dataset", "sample", "sample_seed", "keep", "seeds", "jobs")
        },
        grid=parse_grid(settings["grid"]),
        build=BuildOptions(
            **{name: settings[name] for name in _BUILD_SETTINGS}, corpus=read_options(settings)
        ),
    )


def _print_report(report: BakeoffReport) -> None:
    has_test = any(row.test for row in report.rows)
    header = ("dev", "95 % interval", *(("test",) if has_test else ()), "texts/s", "whole: s",
              "size", "layer", "module")  # fmt: skip
    click.echo(
        f"on {plural(report.documents, 'document')} of {report.total:,}, dataset {report.part}"
    )
    print_table([_cells(row, has_test=has_test) for row in report.rows], header)
    for row in report.rows:
        if row.kept:
            _print_winner(row, report)


def _cells(row: BakeoffRow, *, has_test: bool) -> list[str]:
    cost = row.cost
    return [
        *score_cells(row.dev, row.test, has_test=has_test),
        "-" if cost.texts_per_second is None else f"{cost.texts_per_second:,.0f}",
        "-" if cost.projected_seconds is None else f"{cost.projected_seconds:,.1f}",
        format_bytes(cost.projected_bytes),
        row.candidate.layer or "-",
        row.candidate.module,
    ]


def _print_winner(row: BakeoffRow, report: BakeoffReport) -> None:
    layer = f" layer {row.candidate.layer}" if row.candidate.layer else ""
    built, whole = row.built, row.whole
    if built is None:
        return
    click.echo(
        f"{row.candidate.module}{layer}: the whole built, {built.hits:,} hits,"
        f" {built.misses:,} misses, {built.seconds:.1f} s; dataset {report.dataset}, view"
        f" {row.candidate.view[:12]}"
    )
    if whole is not None and whole.dev is not None:
        test = f", test {percent(whole.test.mean)}" if whole.test else ""
        runs = ", ".join(whole.runs.values())
        click.echo(f"  dev {percent(whole.dev.mean)}{test}; runs {runs}")

"""`embedcache build`: compute what the store lacks of a corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.common import (
    format_bytes,
    json_option,
    open_user_store,
    plural,
    print_json,
    store_path,
)
from cli.corpus_options import corpus_options, read_options
from cli.view_options import VIEW_SETTINGS, shown_value, view_options

if TYPE_CHECKING:
    from embedcache.explain import BuildHint
    from embedcache.plan import BuildPlan
    from embedcache.precompute import BuildOptions, BuildReport

_BUILD_SETTINGS = ("preprocess", *VIEW_SETTINGS, "batch_tokens")


@click.command("build")
@click.argument("corpus", nargs=-1, required=True, metavar="[SPLIT=]PATH...")
@view_options
@click.option("--dataset", metavar="NAME", help="Name to register the corpus under.  [default: the"
              " first file's name up to its first dot]")  # fmt: skip
@corpus_options()
@click.option("--encoding", type=click.Choice(["auto", "dense", "dictionary"]), default="auto",
              show_default=True, help="Rows spelled out, or each distinct one once.")  # fmt: skip
@click.option("--compress", type=click.Choice(["none", "zstd"]), default="none",
              show_default=True, help="Smaller shards for archives, which are slower to read."
              )  # fmt: skip
@click.option("--batch-tokens", type=click.IntRange(1), default=4096, show_default=True,
              help="Tokens that a contextual module gets at once; halved when memory runs out."
              )  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@json_option
@click.pass_context
def command(
    context: click.Context, /, corpus: tuple[str, ...], module: str, dataset: str | None,
    dry_run: bool, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Put every text of a corpus through the module once, ever.

    CORPUS is one or more files: plain text, fastText (__label__x text), CSV or TSV with a
    header, JSONL; gzip too; - is standard input. SPLIT=PATH, such as train=a.tsv test=b.tsv,
    names splits. Texts that the store has already cost a look-up and nothing else.
    """
    from embedcache.corpus import parse_sources

    sources = parse_sources(corpus)
    options = _options(settings)
    if dry_run:
        from embedcache.plan import plan_build

        plan = plan_build(store_path(context), sources, module=module, options=options)
        print_json(plan.to_record()) if as_json else _print_plan(plan)
        return
    from cli.progress import ProgressBar
    from embedcache.explain import hint_of_build
    from embedcache.precompute import build

    with open_user_store(context, create=True) as store, ProgressBar() as bar:
        report = build(
            store, sources, module=module, dataset=dataset, options=options, on_progress=bar.show
        )
        hint = hint_of_build(store, report.view, num_shards=report.shards)
    if as_json:
        print_json(report.to_record() | {"hint": hint.to_record() if hint else None})
        return
    _print_report(report)
    if hint:
        click.echo(_hint_line(hint), err=True)


def _options(settings: dict[str, Any]) -> BuildOptions:
    from embedcache.precompute import BuildOptions
    from embedcache.store.writer import WriterLimits

    return BuildOptions(
        **{name: settings[name] for name in _BUILD_SETTINGS},
        limits=WriterLimits(encoding=settings["encoding"], compression=settings["compress"]),
        corpus=read_options(settings),
    )


def _print_report(report: BuildReport) -> None:
    click.echo(
        f"{report.texts:,} texts, {report.unique:,} distinct:"
        f" {report.hits:,} hits, {report.misses:,} misses"
    )
    if report.misses:
        cut = f", {plural(report.truncated, 'text')} cut" if report.truncated else ""
        if report.windowed:
            cut += f", {plural(report.windowed, 'text')} stitched from windows"
        click.echo(
            f"{report.tokens:,} tokens{cut} in {report.shards} new"
            f" shard{'s' if report.shards != 1 else ''}, {format_bytes(report.bytes)}"
        )
    if report.misses:
        click.echo(
            f"checked alone against the module: {plural(report.fidelity['texts'], 'text')}, largest"
            f" difference {report.fidelity['max_difference']:.2g}"
        )
    if report.misses and report.fidelity["rms_error"]:
        click.echo(
            f"storing changed the numbers by {report.fidelity['rms_error']:.2g} of their size, one"
            f" by up to {report.fidelity['max_error']:.2g} of the largest in its row"
        )
    click.echo(f"{report.seconds:.2f} s, {report.texts_per_second:,.0f} texts/s")
    click.echo(
        f"dataset {report.dataset}@{report.version[:12]}, view {report.view[:12]} ({report.module})"
    )


def _hint_line(hint: BuildHint) -> str:
    """What other view has these texts, and the options under which they would have hit."""
    about = "about " if hint.is_estimate else ""
    other = hint.view
    changed = {difference.field for difference in other.differences}
    kin = "handle with other files" if "module_digest" in changed else "module"
    differing = "; ".join(
        f"{difference.field} {shown_value(difference.stored)}, now {shown_value(difference.asked)}"
        for difference in other.differences
        if not difference.follows
    )
    remedy = f" ({other.options} would have hit)" if other.options else ""
    return (
        f"hint: {about}{hint.texts:,} of the {plural(hint.computed, 'new text')} are stored under"
        f" view {other.view[:12]} of the same {kin}; differs: {differing}{remedy}"
    )


def _print_plan(plan: BuildPlan) -> None:
    click.echo(
        f"{plan.texts:,} texts, {plan.unique:,} distinct:"
        f" {plan.hits:,} hits, {plan.misses:,} misses"
    )
    click.echo(
        f"about {plan.tokens:,} tokens, {format_bytes(plan.bytes)};"
        f" {format_bytes(plan.free_bytes)} free in {plan.store}"
    )
    click.echo("nothing was written (--dry-run)")

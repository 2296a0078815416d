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

if TYPE_CHECKING:
    from embedcache.plan import BuildPlan
    from embedcache.precompute import BuildOptions, BuildReport

_BUILD_SETTINGS = (
    "preprocess",
    "granularity",
    "layer",
    "keep_special_tokens",
    "context_words",
    "max_tokens",
    "overflow",
    "dtype",
    "batch_tokens",
)
_FORMATS = ("txt", "fasttext", "csv", "tsv", "tsv-raw", "jsonl")


@click.command("build")
@click.argument("corpus", nargs=-1, required=True, metavar="[SPLIT=]PATH...")
@click.option("--module", default="builtin:en-words-128", show_default=True, metavar="HANDLE",
              help="A SavedModel's folder or .tar.gz, a TF Hub or Kaggle URL, or builtin:NAME."
              )  # fmt: skip
@click.option("--preprocess", metavar="HANDLE", help="The preprocessor of an encoder of word"
              " pieces.  [default: the one known for it]")  # fmt: skip
@click.option("--granularity", type=click.Choice(["token", "sentence", "window"]),
              help="What a row stands for, where the module gives a vector a text."
              "  [default: by module]")  # fmt: skip
@click.option("--layer", metavar="L[,L...]|mean|all", help="Layers that make a row: a number, a"
              " name, several side by side, their mean, or all kept apart for the trainer to mix."
              "  [default: the module's output]")  # fmt: skip
@click.option("--keep-special-tokens", is_flag=True,
              help="Keep the rows of special tokens such as [CLS].")  # fmt: skip
@click.option("--context-words", type=click.IntRange(0), metavar="N",
              help="With --granularity window: words on either side.  [default: 2]")  # fmt: skip
@click.option("--dataset", metavar="NAME", help="Name to register the corpus under.  [default: the"
              " first file's name up to its first dot]")  # fmt: skip
@click.option("--format", "file_format", type=click.Choice(_FORMATS),
              help="Format of the files.  [default: by name, then by content]")  # fmt: skip
@click.option("--text-field", metavar="FIELD", help="Column or JSON field of the text."
              "  [default: text, else sentence]")  # fmt: skip
@click.option("--label-field", metavar="FIELD", help="That of the label.  [default: label]")
@click.option("--split-field", metavar="FIELD", help="That of the split.  [default: split]")
@click.option("--id-field", metavar="FIELD", help="That of the document's own id.")
@click.option("--encoding-errors", type=click.Choice(["strict", "replace"]), default="strict",
              show_default=True, help="What to do with bytes that are not UTF-8.")  # fmt: skip
@click.option("--max-text-bytes", type=click.IntRange(1, (1 << 31) - 1), default=1 << 20,
              show_default=True, help="Longest line or text that is read.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True,
              help="Rows kept of a text at most.")  # fmt: skip
@click.option("--overflow", type=click.Choice(["truncate", "error", "window"]),
              default="truncate", show_default=True, help="What to do with a longer text: cut it,"
              " stop, or stitch overlapping windows of so many tokens.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16",
              show_default=True, help="Numbers in the store.")  # fmt: skip
@click.option("--encoding", type=click.Choice(["auto", "dense", "dictionary"]), default="auto",
              show_default=True, help="Rows spelled out, or each distinct one once.")  # fmt: skip
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
    from embedcache.precompute import build

    with open_user_store(context, create=True) as store, ProgressBar() as bar:
        report = build(
            store, sources, module=module, dataset=dataset, options=options, on_progress=bar.show
        )
    print_json(report.to_record()) if as_json else _print_report(report)


def _options(settings: dict[str, Any]) -> BuildOptions:
    from embedcache.corpus import CorpusOptions
    from embedcache.precompute import BuildOptions
    from embedcache.store.writer import WriterLimits

    return BuildOptions(
        **{name: settings[name] for name in _BUILD_SETTINGS},
        limits=WriterLimits(encoding=settings["encoding"]),
        corpus=CorpusOptions(
            format=settings["file_format"],
            text_field=settings["text_field"],
            label_field=settings["label_field"],
            split_field=settings["split_field"],
            id_field=settings["id_field"],
            encoding_errors=settings["encoding_errors"],
            max_text_bytes=settings["max_text_bytes"],
        ),
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
    click.echo(f"{report.seconds:.2f} s, {report.texts_per_second:,.0f} texts/s")
    click.echo(
        f"dataset {report.dataset}@{report.version[:12]}, view {report.view[:12]} ({report.module})"
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

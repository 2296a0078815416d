"""`embedcache explain`: why a text hits or misses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cli.common import json_option, open_user_store, plural, print_json, read_lines
from cli.view_options import VIEW_OPTIONS, VIEW_SETTINGS, shown_value, view_options

if TYPE_CHECKING:
    from embedcache.explain import Explanation, FieldDifference, OtherView
    from embedcache.store.database.records import ViewRecord
    from embedcache.store.store import FeatureStore

_SHOWN_VIEWS = 5
_NOWHERE = "no view of the store holds it, nor a text that is nearly the same"


@click.command("explain")
@click.argument("text", metavar="TEXT|-")
@view_options
@click.option("--view", metavar="VIEW", help="Ask for this view of the store instead: its"
              " fingerprint, or its beginning.")  # fmt: skip
@json_option
@click.pass_context
def command(
    context: click.Context, /, text: str, view: str | None, as_json: bool, **settings: Any
) -> None:
    """Say whether TEXT would hit in a build with these options, and if not, why.

    A text that lies under another view only: which of its fields differ, and which options
    make it a hit. One that no view holds: whether the store has nearly the same text, such
    as one with a trailing space. - explains every line of standard input. Nothing is
    computed or written.
    """
    from embedcache.explain import explain_texts

    if view is not None:
        _refuse_view_options(context)
    with open_user_store(context) as store:
        asked = _asked_view(store, view, settings)
        texts = read_lines("-") if text == "-" else [text]
        explanations = explain_texts(store, asked, texts)
    if text == "-":
        _report_lines(explanations, asked, as_json=as_json)
    elif as_json:
        print_json(explanations[0].to_record())
    else:
        _print_explanation(explanations[0])


def _refuse_view_options(context: click.Context) -> None:
    """A view names all of them: one that contradicts it would be passed over in silence."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in VIEW_OPTIONS and source is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--view says it all; leave {parameter.opts[0]} out")


def _asked_view(store: FeatureStore, view: str | None, settings: dict[str, Any]) -> ViewRecord:
    from embedcache.explain import view_to_build
    from embedcache.modules.settings import ViewSettings

    if view is not None:
        return store.catalog.find_view(view)
    return view_to_build(
        store,
        settings["module"],
        ViewSettings(**{name: settings[name] for name in VIEW_SETTINGS}),
        preprocess=settings["preprocess"],
    )


def _print_explanation(explanation: Explanation) -> None:
    view = _view_name(explanation.view, explanation.module)
    click.echo(f"key {explanation.key}, {plural(explanation.text_bytes, 'byte')}; {view}")
    if explanation.hit:
        shard = (explanation.shard or "?")[:12]
        click.echo(f"a hit: {_length(explanation)}, in shard {shard}")
        return
    click.echo("a miss")
    for other in explanation.others[:_SHOWN_VIEWS]:
        click.echo(f"stored under {_view_name(other.view, other.module)}:")
        for difference in other.differences:
            click.echo(f"  {_difference(difference)}")
    more = len(explanation.others) - _SHOWN_VIEWS
    if more > 0:
        click.echo(f"and under {plural(more, 'view')} more, which --json lists")
    for variant in explanation.variants:
        views = ", ".join(f"view {view[:12]}" for view in variant.views)
        click.echo(f"stored: the same text {variant.what} ({views})")
    if not explanation.others and not explanation.variants:
        click.echo(_NOWHERE)


def _view_name(view: str, module: str) -> str:
    return f"view {view[:12]} ({module or '?'})"


def _length(explanation: Explanation) -> str:
    cut = ", cut" if explanation.truncated else ""
    cut += ", stitched from windows" if explanation.windowed else ""
    return plural(explanation.tokens or 0, "token") + cut


def _difference(difference: FieldDifference) -> str:
    values = f"{shown_value(difference.stored)} → {shown_value(difference.asked)}"
    what = "; ".join(filter(None, (difference.option, difference.note)))
    return f"{difference.field}: {values}" + (f"  ({what})" if what else "")


def _report_lines(explanations: Sequence[Explanation], asked: ViewRecord, *, as_json: bool) -> None:
    """What became of each line, and at the end how many of each kind there are."""
    hits = sum(found.hit for found in explanations)
    other_view = sum(bool(found.others) for found in explanations)
    variant = sum(bool(found.variants) for found in explanations)
    nowhere = len(explanations) - hits - other_view - variant
    if as_json:
        lines = [found.to_record() for found in explanations]
        head = {"view": asked.fingerprint, "module": asked.handle}
        counts = {"texts": len(lines), "hits": hits, "other_view": other_view, "variant": variant}
        print_json({**head, **counts, "nowhere": nowhere, "explanations": lines})
        return
    for number, found in enumerate(explanations, 1):
        click.echo(f"line {number}: {_verdict(found)}")
    view = _view_name(asked.fingerprint, asked.handle)
    click.echo(
        f"{plural(len(explanations), 'text')} under {view}: {hits:,} hits, {other_view:,} under"
        f" other views only, {variant:,} stored as nearly the same text, {nowhere:,} nowhere"
    )
    for what, count in Counter(_cause(found) for found in explanations).most_common():
        if what:
            click.echo(f"{count:>8,}  {what}")


def _verdict(explanation: Explanation) -> str:
    if explanation.hit:
        return f"a hit, {_length(explanation)}"
    return f"a miss; {_cause(explanation) or _NOWHERE}"


def _cause(explanation: Explanation) -> str:
    """Why a text misses, as short as can be; empty where nothing is known, or for a hit."""
    if explanation.others:
        return f"stored under {_other_in_short(explanation.others[0])}"
    return f"stored {explanation.variants[0].what}" if explanation.variants else ""


def _other_in_short(other: OtherView) -> str:
    fields = ", ".join(found.field for found in other.differences if not found.follows)
    remedy = f"{other.options} would hit" if other.options else f"differs in {fields}"
    return f"{_view_name(other.view, other.module)}: {remedy}"

"""`embedcache modules`: what modules there are, what one is, fetching, pins, conversion."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from cli.common import (
    format_bytes,
    format_time,
    json_option,
    plural,
    print_json,
    print_table,
    store_path,
)
from cli.convert import command as convert_command

if TYPE_CHECKING:
    from embedcache.module_report import ModuleReport
    from embedcache.modules.facts import Layer
    from embedcache.modules.inspection import CallForm, TensorSpec
    from embedcache.shelf import ListedModule

_DIGEST = re.compile(r"[0-9a-f]{32}")


@click.group("modules")
def command() -> None:
    """Modules: which are here, what one is, and fetching, pinning and converting them."""


command.add_command(convert_command)


@command.command("list")
@json_option
@click.pass_context
def list_command(context: click.Context, as_json: bool) -> None:
    """List bundled and fetched modules, and those that the store has pinned or used."""
    from embedcache.shelf import existing_store, list_modules

    with existing_store(store_path(context)) as store:
        modules = list_modules(store)
    if as_json:
        print_json({"modules": [module.to_record() for module in modules]})
        return
    header = ("module", "place", "size", "digest", "fetched", "pin", "views (texts)")
    print_table([_list_row(module) for module in modules], header)


def _list_row(module: ListedModule) -> tuple[str, ...]:
    pin = "-"
    if module.pinned is not None:
        pin = "agrees" if module.pinned == module.digest else module.pinned[:12]
    views = [f"{view[:12]} ({texts:,})" for view, texts in module.views.items()]
    return (
        module.handle,
        module.place,
        "-" if module.num_bytes is None else format_bytes(module.num_bytes),
        (module.digest or "-")[:12],
        "-" if module.fetched_at is None else format_time(module.fetched_at.timestamp()),
        pin,
        ", ".join(views) or "-",
    )


@command.command("inspect")
@click.argument("handle")
@click.option("--preprocess", metavar="HANDLE", help="Its preprocessor, for an encoder of word"
              " pieces.  [default: the one that is known for it]")  # fmt: skip
@json_option
@click.pass_context
def inspect_command(
    context: click.Context, handle: str, preprocess: str | None, as_json: bool
) -> None:
    """Show what the module HANDLE is, and what a build would make of it.

    It is fetched if it must be, and loaded. Nothing is written to the store.
    """
    from embedcache.module_report import inspect_module
    from embedcache.shelf import existing_store

    with existing_store(store_path(context)) as store:
        report = inspect_module(store.catalog if store else None, handle, preprocess=preprocess)
    print_json(report.to_record()) if as_json else _print_report(report)


def _print_report(report: ModuleReport) -> None:
    rows = [*_file_rows(report), *_kind_rows(report)]
    contents = report.contents
    rows += [(f"signature {form.name}", _show_form(form)) for form in contents.signatures]
    rows += [(form.name, _show_form(form)) for form in contents.calls]
    width = max(len(name) for name, _ in rows)
    for name, shown in rows:
        click.echo(f"{name.ljust(width)}  {shown}")
    outlook = report.outlook
    click.echo()
    click.echo(f"build refuses: {outlook.reason}" if outlook.reason else f"build: {outlook.text}")


def _file_rows(report: ModuleReport) -> list[tuple[str, str]]:
    files = report.files
    pinned = "no"
    if files.pinned is not None:
        pinned = "this digest" if files.pin_agrees else f"{files.pinned}: the files have changed"
    return [
        ("handle", files.handle),
        ("folder", str(files.path)),
        ("size", f"{format_bytes(files.num_bytes)} in {plural(files.num_files, 'file')}"),
        ("digest", files.digest),
        ("pinned", pinned),
        ("format", report.contents.format),
    ]


def _kind_rows(report: ModuleReport) -> list[tuple[str, str]]:
    from embedcache.modules.inspection import describe_tokenizer

    facts, outlook = report.facts, report.outlook
    if facts is None:
        return [("kind", "none that is known")]
    special = outlook.special_ids
    rows: list[tuple[str, object]] = [
        ("kind", facts.kind),
        ("called", facts.signature),
        ("output read", facts.output),
        ("layers", _show_layers(facts.layers)),
        ("other outputs", _show_layers(facts.outputs)),
        ("dim", facts.dim),
        ("combiner", facts.combiner),
        ("tokenizer", describe_tokenizer(facts)),
        ("preprocessor", outlook.preprocess.handle if outlook.preprocess else ""),
        ("max length", f"{outlook.max_length} tokens" if outlook.max_length else ""),
        ("vocabulary", f"{report.vocab_size:,}" if report.vocab_size else ""),
        ("special ids", f"{_show_ids(special.before)} TEXT {_show_ids(special.after)}"
         if special else ""),
    ]  # fmt: skip
    return [(name, str(shown)) for name, shown in rows if shown]


def _show_layers(layers: tuple[Layer, ...]) -> str:
    return ", ".join(f"{layer.name} ({layer.dim})" for layer in layers)


def _show_ids(ids: tuple[int, ...]) -> str:
    return " ".join(map(str, ids)) or "-"


def _show_form(form: CallForm) -> str:
    inputs = ", ".join(map(_show_tensor, form.inputs)) or "nothing"
    return f"{inputs} → {', '.join(map(_show_tensor, form.outputs)) or 'nothing'}"


def _show_tensor(tensor: TensorSpec) -> str:
    """``text string (?)``; a question mark is a free dimension."""
    shape = "?"
    if tensor.shape is not None:
        shape = ", ".join("?" if size is None else str(size) for size in tensor.shape)
    return f"{tensor.name} {tensor.dtype} ({shape})".lstrip()


@command.command("fetch")
@click.argument("handles", nargs=-1, required=True, metavar="HANDLE...")
@click.option("--refresh", is_flag=True, help="Fetch again, and replace the copies.")
@json_option
def fetch_command(handles: tuple[str, ...], refresh: bool, as_json: bool) -> None:
    """Fetch each HANDLE, a URL or an archive, into the module cache."""
    from embedcache.modules.parsing import parse_handle
    from embedcache.shelf import fetch_module

    for handle in handles:
        parse_handle(handle)  # a slip in the last one is told before the first is fetched
    records = []
    for handle in handles:
        fetched = fetch_module(handle, refresh=refresh)
        records.append(fetched.to_record())
        if as_json:
            continue
        if fetched.in_place:
            click.echo(f"{handle}: is used where it lies; nothing is to be fetched")
        else:
            click.echo(f"{handle}: is in the module cache")
        click.echo(f"  {fetched.path}")
        click.echo(f"  {format_bytes(fetched.bytes)}, digest {fetched.digest}")
        if fetched.preprocess is not None:
            click.echo(f"  goes with {fetched.preprocess}")
    if as_json:
        print_json({"modules": records})


@command.command("pin")
@click.argument("handle")
@click.option("--digest", metavar="DIGEST", help="Refuse unless the files have this digest.")
@json_option
@click.pass_context
def pin_command(context: click.Context, handle: str, digest: str | None, as_json: bool) -> None:
    """Pin the digest that the files of HANDLE have now.

    From then on the store refuses other files under this handle. A build pins what it first
    meets by itself; this accepts a module that has changed, or pins one beforehand.
    """
    if digest is not None:
        digest = digest.strip().lower()
        if not _DIGEST.fullmatch(digest):
            raise click.BadParameter("is not 32 hexadecimal digits", param_hint="'--digest'")
    from embedcache.shelf import pin_files

    path = store_path(context)
    pin = pin_files(path, handle, digest=digest)
    if as_json:
        print_json(pin.to_record())
        return
    before = "" if pin.before in (None, pin.digest) else f" (before: {pin.before})"
    click.echo(f"{pin.handle}: pinned {pin.digest}{before} in {path}")


@command.command("remove")
@click.argument("handle")
@json_option
@click.pass_context
def remove_command(context: click.Context, handle: str, as_json: bool) -> None:
    """Remove the fetched copy of HANDLE from the module cache, and its pin from the store.

    A folder that is used where it lies is left alone, and so are all features.
    """
    from embedcache.shelf import existing_store, remove_module

    path = store_path(context)
    with existing_store(path) as store:
        removal = remove_module(store, handle)
    if as_json:
        print_json(removal.to_record())
        return
    if removal.removed:
        click.echo(f"{handle}: removed from the module cache")
    if removal.unpinned:
        click.echo(f"{handle}: no longer pinned in {path}")

"""`embedcache modules convert`: word vectors and BERT checkpoints → modules."""

from __future__ import annotations

from pathlib import Path

import click

from cli.common import json_option, plural, print_json

_FORMATS = ("glove", "word2vec-text", "word2vec-bin")
_COMBINERS = ("sqrtn", "mean", "sum")

# Whether they are there, and may be read, is told in one line by what reads them.
_PATH = click.Path(path_type=Path)


@click.group("convert")
def command() -> None:
    """Make a module of what is none: word vectors, a BERT checkpoint."""


@command.command("vectors")
@click.argument("source", type=_PATH)
@click.argument("target", type=_PATH)
@click.option("--format", "file_format", type=click.Choice(_FORMATS),
              help="Format of SOURCE.  [default: by its content]")  # fmt: skip
@click.option("--combiner", type=click.Choice(_COMBINERS), default="sqrtn", show_default=True,
              help="How a text's vector is made of its words'.")  # fmt: skip
@click.option("--lower-case", is_flag=True, help="Lower-case texts before words are looked up.")
@click.option("--max-words", type=click.IntRange(1), help="Take the first words only.")
@json_option
def vectors_command(
    source: Path, target: Path, file_format: str | None, combiner: str, lower_case: bool,
    max_words: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a module in the new folder TARGET of the word vectors in SOURCE.

    SOURCE is a file of GloVe, word2vec (text or binary) or fastText (.vec), perhaps gzip.
    """
    from embedcache.modules.convert.word_vectors import convert_word_vectors

    done = convert_word_vectors(
        source, target, format=file_format, combiner=combiner, normalize=lower_case,
        max_words=max_words,
    )  # fmt: skip
    if as_json:
        print_json(
            {
                "module": str(done.path),
                "format": done.format,
                "vocab_size": done.vocab_size,
                "dim": done.dim,
                "duplicates": done.duplicates,
            }
        )
        return
    twice = f"; {plural(done.duplicates, 'word')} stood there again" if done.duplicates else ""
    click.echo(f"wrote {done.path}")
    click.echo(f"{plural(done.vocab_size, 'word')} of {done.dim} numbers ({done.format}){twice}")
    _print_next(done.path)


@command.command("bert")
@click.argument("checkpoint", type=_PATH)
@click.argument("target", type=_PATH)
@click.option("--max-seq-length", type=click.IntRange(3), metavar="N",
              help="Pieces that the preprocessor, called by itself, pads to and cuts at; a build"
              " does not.  [default: 128]")  # fmt: skip
@json_option
def bert_command(checkpoint: Path, target: Path, max_seq_length: int | None, as_json: bool) -> None:
    """Make an encoder and its preprocessor in the new folder TARGET of a BERT CHECKPOINT.

    CHECKPOINT is a folder with config.json, model.safetensors and vocab.txt, as Hugging Face
    lays it out.
    """
    from embedcache.modules.convert.bert import convert_bert_checkpoint

    done = convert_bert_checkpoint(checkpoint, target, max_seq_length=max_seq_length)
    if as_json:
        print_json(
            {
                "module": str(done.encoder.absolute()),
                "preprocess": str(done.preprocess.absolute()),
                "layers": done.num_layers,
                "dim": done.dim,
                "vocab_size": done.vocab_size,
                "max_length": done.max_positions,
                "lower_case": done.lower_case,
            }
        )
        return
    case = "lower-cased" if done.lower_case else "cased"
    click.echo(f"wrote {done.encoder.absolute()} and {done.preprocess.absolute()}")
    click.echo(
        f"{plural(done.num_layers, 'layer')} of {done.dim} numbers, {done.vocab_size:,} word"
        f" pieces ({case}), up to {done.max_positions} of them a text"
    )
    _print_next(done.encoder.absolute())


def _print_next(module: Path) -> None:
    import shlex

    click.echo(f"next: embedcache build CORPUS --module {shlex.quote(str(module))}")

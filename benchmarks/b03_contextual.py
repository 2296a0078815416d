"""B3: building with a contextual module, real tokens/s on a real mix of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.checkpoints import MINILM_PACKAGE, find_minilm, write_tiny_checkpoint
from benchmarks.contextual_peers import (
    BATCH_TEXTS,
    IDS,
    TOLERANCE,
    BareModule,
    Batch,
    CorpusOrder,
    HubModule,
    Pieces,
    Reference,
    Sample,
)
from benchmarks.contextual_stage import ComputeStage, WholeBuild
from benchmarks.corpora import iter_texts, sst2_texts
from benchmarks.measure import Contender, Series, measure, ratio
from benchmarks.report import Report, Target, named
from benchmarks.scale import Scale
from embedcache.compute.batches import BATCH_TOKENS_DEFAULT
from embedcache.encoder import SequenceEncoder, TokenEncoder
from embedcache.modules.convert.bert import ConvertedBert, convert_bert_checkpoint
from embedcache.pinning import pin_module

FIXED_LENGTH = 128
FEW_LAYERS = 3
OURS = "embedcache's compute stage"
OURS_FEW_LAYERS = f"embedcache's compute stage, layer {FEW_LAYERS}"
BUILD = "embedcache.build, all misses"
PADDED_TO_FIXED = f"corpus order, padded to {FIXED_LENGTH}"
PADDED_TO_LONGEST = "corpus order, padded to the batch"
LIMIT = "the bare module on the same batches"


def run(scale: Scale, work: Path) -> Report:
    """Measure it, or tell why it cannot be measured here."""
    texts = _find_texts(scale)
    if not texts:
        return _left_out("SST-2 is not beside the checkout, in ../shared/data")
    checkpoint = _find_checkpoint(scale, texts, work)
    if checkpoint is None:
        return _left_out(f"{MINILM_PACKAGE}, which holds the module's weights, is not installed")
    converted = convert_bert_checkpoint(checkpoint, work / "module", max_seq_length=FIXED_LENGTH)
    pinned = pin_module(None, str(converted.encoder))
    module = HubModule(converted.encoder, converted.preprocess)
    ours = ComputeStage(OURS, pinned, None, work / "store")
    few = ComputeStage(OURS_FEW_LAYERS, pinned, str(FEW_LAYERS), work / "few")
    sample = draw_sample(texts, ours.encoder, scale)
    batches = ours.record_batches(sample)
    bare = BareModule(module, batches)
    reference = Reference(bare.rows())
    _warm_up(module, few, sample.beginning())
    fixed = CorpusOrder(PADDED_TO_FIXED, module.encode, module.pack_fixed, sample)
    longest = CorpusOrder(PADDED_TO_LONGEST, module.encode, module.pack_to_longest, sample)
    contenders = [
        _stage(ours, sample, reference),
        _stage(few, sample, _few_layers_reference(module, sample.beginning())),
        _build(WholeBuild(BUILD, pinned.handle, work, sample), reference),
        _peer(fixed, reference),
        _peer(longest, reference),
        Contender(name=LIMIT, role="limit", run=bare.run),
    ]
    series = measure(contenders, rounds=scale.rounds, min_seconds=scale.min_seconds)
    ours.close()
    few.close()
    notes = [
        _sample_note(scale, sample, converted),
        *_NOTES,
        _differences_note(reference),
        _padding_note(sample, batches),
        f"Traces of the encoder's function: {ours.encoder.num_traces}; texts of the compute stage"
        f" that are computed once more: {ours.num_checked}.",
    ]
    return _report(series, notes)


def _left_out(reason: str) -> Report:
    return _report([], skipped=[f"all of it: {reason}"])


def _report(series: list[Series], notes: Sequence[str] = (), skipped: Sequence[str] = ()) -> Report:
    return Report(
        number="B3",
        title="building with a contextual module, every text a miss",
        unit="real tokens/s",
        cache="warm, the corpus and the module's files are in the page cache",
        binds="the module's own arithmetic; embedcache only spares it the padding",
        series=series,
        targets=_targets(series) if series else [],
        notes=list(notes),
        skipped=list(skipped),
    )


def _targets(series: list[Series]) -> list[Target]:
    ours, few, build = (named(series, name) for name in (OURS, OURS_FEW_LAYERS, BUILD))
    fixed, longest = named(series, PADDED_TO_FIXED), named(series, PADDED_TO_LONGEST)
    share = ratio(ours, named(series, LIMIT))
    return [
        Target(what=f"≥ 4 × {PADDED_TO_FIXED}", value=ratio(ours, fixed), wanted=4.0),
        Target(what=f"≥ 1.7 × {PADDED_TO_LONGEST}", value=ratio(ours, longest), wanted=1.7),
        Target(what=f"≥ 95 % of the limit, {LIMIT}", value=share, wanted=0.95, unit="%"),
        Target(what=f"layer {FEW_LAYERS} ÷ all layers", value=ratio(few, ours)),
        Target(what=f"{BUILD} ÷ {PADDED_TO_FIXED}", value=ratio(build, fixed)),
        Target(what=f"{BUILD} ÷ {PADDED_TO_LONGEST}", value=ratio(build, longest)),
    ]


def _stage(stage: ComputeStage, sample: Sample, reference: Reference) -> Contender:
    return Contender(
        name=stage.name,
        role="ours",
        run=lambda _number: stage.run(sample),
        before=stage.renew,
        check=lambda _number: stage.check(sample, reference),
    )


def _build(build: WholeBuild, reference: Reference) -> Contender:
    return Contender(
        name=build.name,
        role="ours",
        run=build.run,
        before=build.remove,
        check=lambda _number: build.check(reference),
    )


def _peer(peer: CorpusOrder, reference: Reference) -> Contender:
    return Contender(
        name=peer.name,
        role="peer",
        run=peer.run,
        check=lambda number: peer.check(number, reference),
    )


def _find_texts(scale: Scale) -> list[bytes]:
    """Texts to draw from; none where SST-2 is asked for and not there."""
    if scale.use_real_data:
        return sst2_texts()
    # More than are drawn: some may have the same pieces.
    texts = iter_texts(2 * scale.contextual_texts, mean_words=6, seed=3)
    return [text.encode() for text in texts]


def _find_checkpoint(scale: Scale, texts: Sequence[bytes], work: Path) -> Path | None:
    if scale.use_real_data:
        return find_minilm()
    return write_tiny_checkpoint(work / "checkpoint", texts)


def draw_sample(
    texts: Sequence[bytes], encoder: TokenEncoder | SequenceEncoder, scale: Scale
) -> Sample:
    """Draw texts with a fixed seed; none that `FIXED_LENGTH` would cut, none twice.

    Args:
        texts: To draw from.
        encoder: Splits them into pieces.
        scale: Says how many.
    """
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = [texts[place] for place in order.tolist()]
    tokenized = encoder.tokenize_texts(shuffled)
    all_pieces = np.split(np.asarray(tokenized.tokens, np.int32), tokenized.row_splits[1:-1])
    drawn: dict[bytes, tuple[bytes, Pieces]] = {}
    for text, pieces in zip(shuffled, all_pieces, strict=True):
        if len(drawn) < scale.contextual_texts and 0 < len(pieces) <= FIXED_LENGTH - 2:
            drawn.setdefault(pieces.tobytes(), (text, pieces))
    return Sample(
        [text for text, _ in drawn.values()],
        [pieces for _, pieces in drawn.values()],
        scale.contextual_slice,
    )


def _few_layers_reference(module: HubModule, sample: Sample) -> Reference:
    """The rows that the module itself gives for a lower layer."""
    encode = partial(module.encode_layer, layer=FEW_LAYERS)
    usual = CorpusOrder("", encode, module.pack_to_longest, sample)
    usual.run(0)
    return Reference(usual.take_rows())


def _warm_up(module: HubModule, few: ComputeStage, sample: Sample) -> None:
    """Call once what nothing has called yet, so that no round has a first call in it."""
    few.renew()
    few.run(sample)
    for pack in (module.pack_fixed, module.pack_to_longest):
        CorpusOrder("", module.encode, pack, sample).run(0)


_NOTES = (
    "Real tokens are the pieces of the texts, special ones and padding not counted. The compute"
    " stage, the build and the limit take all texts each round; the two in corpus order, which"
    f" are slow, the next part of them, in batches of {BATCH_TEXTS} texts.",
    "The compute stage tokenises, sorts, pads and packs, computes a few texts once more alone,"
    " converts to float16, and writes a durable shard with ids and spans of all tokens in it;"
    f" {BATCH_TOKENS_DEFAULT:,} tokens a batch at most. Those in corpus order call preprocessor"
    " and encoder as their page on TF Hub says, and neither convert nor store anything. The limit"
    " is one function of ids that are packed already; nothing is taken out of it.",
    "The build reads the file, digests the module and loads it twice, to probe and to use it.",
)


def _sample_note(scale: Scale, sample: Sample, converted: ConvertedBert) -> str:
    lengths = [len(pieces) for pieces in sample.pieces]
    texts, module = "generated texts", "a BERT with random weights"
    if scale.use_real_data:
        texts, module = "texts of SST-2", "all-MiniLM-L6-v2, converted by embedcache"
    return (
        f"{len(lengths):,} {texts}, drawn with a fixed seed: {sum(lengths):,} pieces,"
        f" {sum(lengths) / len(lengths):.1f} a text, {max(lengths)} at most. {module}:"
        f" {converted.num_layers} layers, {converted.dim} dimensions; the last one's output is"
        " taken."
    )


def _differences_note(reference: Reference) -> str:
    found = ", ".join(f"{name} {most:.1e}" for name, most in reference.differences.items())
    return (
        f"Rows of all contenders and rounds are compared with the limit's: at most {TOLERANCE:g}"
        f" apart, and half of the last bit where they are stored as float16. Found: {found}."
        f" Layer {FEW_LAYERS}'s are compared with the module's own, of the first {BATCH_TEXTS}"
        " texts."
    )


def _padding_note(sample: Sample, batches: Sequence[Batch]) -> str:
    """What part of the positions that go through the module is padding, by contender."""
    lengths = np.array([len(pieces) + 2 for pieces in sample.pieces])
    # Of whole batches only: the last one may be shorter.
    whole = lengths[: len(lengths) // BATCH_TEXTS * BATCH_TEXTS].reshape(-1, BATCH_TEXTS)
    longest = 1 - whole.sum() / (BATCH_TEXTS * whole.max(axis=1).sum())
    fixed = 1 - lengths.mean() / FIXED_LENGTH
    shapes = [tuple(batch[IDS].shape) for batch in batches]
    ours = 1 - lengths.sum() / sum(rows * columns for rows, columns in shapes)
    return (
        f"Padding: {100 * fixed:.0f} % of what goes through the module where all is padded to"
        f" {FIXED_LENGTH}, {100 * longest:.0f} % where it is to the batch, {100 * ours:.1f} % in"
        f" embedcache's {len(shapes)} batches of {len({columns for _, columns in shapes})}"
        " different lengths."
    )

"""What `--layer` can ask for, and what the view says of it. None of it needs TensorFlow."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcache.errors import ModuleError
from embedcache.modules.facts import ELMO, PREPROCESSED_ENCODER, TF1_BERT, Layer, ModuleFacts
from embedcache.modules.layers import LayerChoice, choose_layers


def layers(**widths: int) -> tuple[Layer, ...]:
    return tuple(Layer(name=name.lstrip("_"), dim=dim) for name, dim in widths.items())


BERT = ModuleFacts(
    kind=PREPROCESSED_ENCODER,
    signature="__call__ of a dict",
    output="sequence_output",
    dim=8,
    tokenizer="pieces",
    layers=layers(_1=8, _2=8, _3=8),
    outputs=layers(sequence_output=8),
)
ELMO_FACTS = ModuleFacts(
    kind=ELMO,
    signature="default",
    output="elmo",
    dim=8,
    tokenizer="space-nonempty",
    layers=layers(word_emb=4, lstm_outputs1=8, lstm_outputs2=8),
    outputs=layers(elmo=8),
)
ONE_OUTPUT = ModuleFacts(
    kind=TF1_BERT,
    signature="tokens",
    output="sequence_output",
    dim=8,
    tokenizer="pieces",
    outputs=layers(sequence_output=8, all_heads=6),
)


@pytest.mark.parametrize(
    ("facts", "wanted", "output", "dim", "num_layers"),
    [
        (BERT, None, "sequence_output", 8, 1),
        (BERT, "last", "sequence_output", 8, 1),
        (BERT, "sequence_output", "sequence_output", 8, 1),
        (BERT, "2", "2", 8, 1),
        (BERT, "-1", "3", 8, 1),
        (BERT, "-3", "1", 8, 1),
        (BERT, "1,3", "1,3", 16, 1),
        (BERT, "3, 1", "3,1", 16, 1),
        (BERT, "-1,last", "3,sequence_output", 16, 1),
        (BERT, "mean", "mean:1,2,3", 8, 1),
        (BERT, "mean:2,3", "mean:2,3", 8, 1),
        (BERT, "mean:-2,-1", "mean:2,3", 8, 1),
        (BERT, "all", "all:1,2,3", 24, 3),
        (BERT, "all:3,1", "all:3,1", 16, 2),
        (BERT, "all:3", "all:3", 8, 1),
        (ELMO_FACTS, None, "elmo", 8, 1),
        (ELMO_FACTS, "word_emb", "word_emb", 4, 1),
        (ELMO_FACTS, "word_emb,lstm_outputs1", "word_emb,lstm_outputs1", 12, 1),
        # A narrower layer is repeated up to the widest.
        (ELMO_FACTS, "mean", "mean:word_emb,lstm_outputs1,lstm_outputs2", 8, 1),
        (ELMO_FACTS, "all", "all:word_emb,lstm_outputs1,lstm_outputs2", 24, 3),
        (ELMO_FACTS, "-3", "word_emb", 4, 1),
        # A name that begins as a mode does is a name.
        (ONE_OUTPUT, "all_heads", "all_heads", 6, 1),
        (ONE_OUTPUT, "all:all_heads", "all:all_heads", 6, 1),
    ],
)
def test_layers_are_chosen_as_they_are_asked_for(
    facts: ModuleFacts, wanted: str | None, output: str, dim: int, num_layers: int
) -> None:
    choice = choose_layers("h", facts, wanted)
    assert (choice.output, choice.dim, choice.num_layers) == (output, dim, num_layers)
    assert dim % num_layers == 0, "as a view requires"


wanted_layers = st.sampled_from(["1", "2", "3", "-1", "last", "sequence_output"])


@settings(derandomize=True, deadline=None)
@given(
    mode=st.sampled_from(["", "mean:", "all:"]),
    names=st.lists(wanted_layers, min_size=1, max_size=5),
)
def test_what_a_view_says_chooses_the_same_layers_again(mode: str, names: list[str]) -> None:
    choice = choose_layers("h", BERT, mode + ",".join(names))
    assert choose_layers("h", BERT, choice.output) == choice
    assert len(choice.layers) == len(names)


@pytest.mark.parametrize("wanted", ["0", "4", "-4", "-0", "", "1,", "1-3", "meanx", "mean:4", "x"])
def test_layer_that_is_not_there_is_an_error_that_lists_those_there_are(wanted: str) -> None:
    with pytest.raises(ModuleError, match=r"^h: no layer '") as caught:
        choose_layers("h", BERT, wanted)
    assert str(caught.value).endswith("there are: 1 to 3, sequence_output, and mean, all")
    assert "\n" not in str(caught.value)


def test_module_without_layers_is_not_offered_their_mean() -> None:
    with pytest.raises(ModuleError, match=r"no layer '3'; there are: sequence_output, all_heads$"):
        choose_layers("h", ONE_OUTPUT, "3")
    for wanted in ("mean", "all"):
        reason = f"^h: its layers cannot be had .* so --layer {wanted} cannot be; it has sequence_"
        with pytest.raises(ModuleError, match=reason):
            choose_layers("h", ONE_OUTPUT, wanted)


@pytest.mark.parametrize("wanted", ["mean:sequence_output,all_heads", "all:all_heads,last"])
def test_widths_that_do_not_fit_each_other_cannot_be_mixed(wanted: str) -> None:
    with pytest.raises(ModuleError, match=r"^h: layer all_heads is 6 wide, the widest 8, which"):
        choose_layers("h", ONE_OUTPUT, wanted)
    assert choose_layers("h", ONE_OUTPUT, "last,all_heads").dim == 14


def test_one_numbered_layer_is_listed_by_its_number() -> None:
    facts = ModuleFacts(
        kind=TF1_BERT, signature="s", output="1", dim=8, tokenizer="pieces", layers=layers(_1=8)
    )
    with pytest.raises(ModuleError, match=r"there are: 1, and mean, all$"):
        choose_layers("h", facts, "2")
    assert choose_layers("h", facts, None) == LayerChoice(layers(_1=8))

"""Labels of words: aligned with word pieces, scored by entities, packed, told in a line."""

import itertools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertForTokenClassification, UserError
from mosaicbert_jax.finetuning.classifier import Classifier
from mosaicbert_jax.finetuning.encoded import encode_tagged
from mosaicbert_jax.finetuning.examples import Columns, TaggedExample, read_tagged_examples
from mosaicbert_jax.finetuning.objective import jitted_logits, logits_of
from mosaicbert_jax.finetuning.scores import entity_f1
from mosaicbert_jax.storage.target import TOKEN_CLASSIFICATION, Target
from mosaicbert_jax.text.tokenizer import load_tokenizer
from mosaicbert_jax.training import sharding
from tests.finetuning.cases import BAD, SHORT, TINY, finetune, metric_rows, pretrained
from tests.finetuning.test_finetuning import command

TARGET = Target(TOKEN_CLASSIFICATION, ("B-PLACE", "I-PLACE", "O"))


def tagged(count: int, seed=0) -> list[TaggedExample]:
    """Words of which "union" and "treaty" are a place, and a number of several pieces."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        words = [*rng.choice(BAD, rng.integers(1, 9)), "union", "treaty"]
        labels = ["O"] * (len(words) - 2) + ["B-PLACE", "I-PLACE"]
        words.append(str(rng.integers(100, 999)))
        found.append(TaggedExample(tuple(words), (*labels, "O"), f"line {number}"))
    return found


def write(path, examples):
    lines = [json.dumps({"words": e.words, "tags": e.labels}) for e in examples]
    path.write_text("\n".join(lines))
    return path


SETTINGS = (
    *SHORT, "task=token_classification", "data.text=words", "data.label=tags",
    "data.max_seq_len=96",  # rows that hold all of a batch: one shape to compile
)  # fmt: skip


def test_a_words_label_stands_at_its_first_piece(dataset):
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    examples = tagged(20)
    found = encode_tagged(examples, tokenizer, TARGET, 48)
    for index, example in enumerate(examples):
        part = found.part(np.array([index]))
        expected = tokenizer.encode(list(example.words), is_pretokenized=True)
        assert part.tokens_T.tolist() == expected.ids
        firsts, before = [], None
        for word in expected.word_ids:
            is_first = word is not None and word != before
            firsts.append(TARGET.labels.index(example.labels[word]) if is_first else -1)
            before = word
        assert part.word_labels_T.tolist() == firsts
    assert max(np.diff(found.starts_S)) > max(len(e.words) for e in examples) + 2  # of pieces

    cut = encode_tagged(examples, tokenizer, TARGET, 8)
    assert np.diff(cut.starts_S).max() == 8
    assert (cut.words(np.arange(20)) <= 6).all()


def test_entities_are_right_as_a_whole(dataset):
    names = {label: number for number, label in enumerate(TARGET.labels)}
    labels = ["B-PLACE", "I-PLACE", "O", "B-PLACE", "B-PLACE", "O"]
    guesses = ["B-PLACE", "I-PLACE", "O", "O", "B-PLACE", "I-PLACE"]
    as_numbers = [np.array([names[x] for x in row]) for row in (labels, guesses)]
    # Of 3 entities and 2 found, 1 is right where the last two words are one example:
    # (B) and (B I) differ. Cut between them, the second example begins with an I of its own.
    assert entity_f1(*as_numbers, np.array([3, 3]), TARGET) == pytest.approx(2 * 1 / (3 + 2))
    assert entity_f1(*as_numbers, np.array([5, 1]), TARGET) == pytest.approx(2 * 2 / (3 + 3))


def test_packed_words_are_those_of_one_by_one(dataset):
    encoded = encode_tagged(tagged(21), load_tokenizer(dataset / "tokenizer.json"), TARGET, 48)
    model = BertForTokenClassification(TINY, num_labels=3, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    params = jax.tree.map(lambda x: 5 * x, nnx.to_pure_dict(params))
    packed = logits_of(
        jitted_logits(graph), params, encoded, sharding.make_mesh(-1), size=8, row_length=48
    )
    step = jax.jit(lambda *arrays: nnx.merge(graph, params)(*arrays))
    alone = []
    for begin, end in itertools.pairwise(encoded.starts_S):
        tokens, segments = np.zeros((1, 48), np.int32), np.zeros((1, 48), np.int32)
        tokens[0, : end - begin], segments[0, : end - begin] = encoded.tokens_T[begin:end], 1
        is_word_T = encoded.word_labels_T[begin:end] >= 0
        alone.append(np.asarray(step(tokens, segments))[0, : end - begin][is_word_T])
    np.testing.assert_allclose(packed, np.concatenate(alone), atol=2e-5)
    assert np.std(packed) > 0.1


@pytest.mark.one_end
def test_a_run_learns_and_predict_labels_words(dataset, tmp_path, capsys):
    origin = pretrained(tmp_path / "origin", dataset)
    data = write(tmp_path / "x.jsonl", tagged(150))
    assert finetune(tmp_path / "run", origin, data, *SETTINGS, "train.duration=6ep") == 0
    last = [row for row in metric_rows(tmp_path / "run") if "eval_loss" in row][-1]
    assert last["eval_entity_f1"] > 0.9
    assert last["eval_accuracy"] > 0.9

    (tmp_path / "x.txt").write_text("war year union treaty\nunion treaty state 712\n")
    capsys.readouterr()
    assert command("predict", tmp_path / "run", tmp_path / "x.txt") == 0
    printed = capsys.readouterr().out
    assert [line.split("\t") for line in printed.split("\n\n")[0].splitlines()] == [
        ["war", "O"], ["year", "O"], ["union", "B-PLACE"], ["treaty", "I-PLACE"],
    ]  # fmt: skip

    assert command("convert", tmp_path / "run", "--output", tmp_path / "exported") == 0
    stored = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert stored["id2label"] == {"0": "B-PLACE", "1": "I-PLACE", "2": "O"}
    new = tagged(10, seed=4)
    assert Classifier(tmp_path / "exported")(new) == Classifier(tmp_path / "run")(new)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, "x.jsonl:2: 2 words and 1 labels"),
        ({"words": "a b", "tags": ["O"]}, "x.jsonl:2: 'words' must be a list of strings"),
        ({"text": ["a"], "tags": ["O"]}, "x.jsonl:2: no key 'words', only 'text', 'tags'"),
    ],
)
def test_lists_that_do_not_match_are_named(tmp_path, line, message):
    good = json.dumps({"words": ["a"], "tags": ["O"]})
    (tmp_path / "x.jsonl").write_text(f"{good}\n{json.dumps(line)}\n")
    with pytest.raises(UserError) as caught:
        read_tagged_examples(tmp_path / "x.jsonl", Columns("words", None, "tags"))
    assert message in str(caught.value)


def test_an_unknown_label_of_a_word_is_named(dataset):
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    example = TaggedExample(("great", "law"), ("O", "B-WAR"), "dev.jsonl:3")
    with pytest.raises(UserError, match=r"dev.jsonl:3, word 2: unknown label 'B-WAR'"):
        encode_tagged([example], tokenizer, TARGET, 9)

"""Packed batches: exactly the recipe's examples, few shapes, and the numbers of one by one."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertForSequenceClassification
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.finetuning.batching import bucket, packed_batch, training_batches
from mosaicbert_jax.finetuning.objective import CLASSES, jitted_logits, logits_of
from mosaicbert_jax.training import sharding
from tests.finetuning.cases import BASELINE, MODERN, TINY, encoded_pairs

SETTINGS = {"seed": 3, "size": 16, "row_length": 48, "shards": 2}


@pytest.fixture(scope="module")
def examples(dataset):
    return encoded_pairs(dataset, 50)


def texts_of(batch) -> list[tuple[int, ...]]:
    """The examples of a batch, each by its tokens and label, in no order."""
    tokens, segments = batch.arrays["tokens_BL"].ravel(), batch.arrays["segment_ids_BL"].ravel()
    found = []
    for first, label in zip(
        batch.arrays["first_positions_S"], batch.arrays["labels_S"], strict=True
    ):
        length = int(np.argmax(np.append(segments[first:], -1) != segments[first]))
        found.append((int(label), *tokens[first : first + length].tolist()))
    return sorted(found)


def all_of(examples) -> list[tuple[int, ...]]:
    spans = itertools.pairwise(examples.starts_S)
    return sorted(
        (int(label), *examples.tokens_T[a:b].tolist())
        for (a, b), label in zip(spans, examples.labels_S, strict=True)
    )


def test_each_step_has_exactly_so_many_and_each_epoch_all(examples):
    stream = list(itertools.islice(training_batches(examples, Position(), **SETTINGS), 25))
    assert all(batch.sequences == len(texts_of(batch)) == 16 for batch in stream)
    seen = [text for batch in stream for text in texts_of(batch)]  # 400 are 8 epochs of 50
    assert sorted(seen) == sorted(8 * all_of(examples))
    assert all(batch.tokens == (batch.arrays["segment_ids_BL"] > 0).sum() for batch in stream)


def test_each_epoch_has_an_order_of_its_own(examples):
    tens = training_batches(examples, Position(), **{**SETTINGS, "size": 10})
    epochs = [[texts_of(next(tens)) for _ in range(5)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == all_of(examples)


def test_a_position_goes_on_where_it_stood(examples):
    stream = list(itertools.islice(training_batches(examples, Position(), **SETTINGS), 9))
    for step in (1, 4, 7):
        rest = training_batches(examples, stream[step - 1].position, **SETTINGS)
        for batch, expected in zip(rest, stream[step:], strict=False):
            assert batch.position == expected.position
            for name, array in expected.arrays.items():
                np.testing.assert_array_equal(batch.arrays[name], array)


def test_few_shapes_with_room_for_all():
    for shards in (1, 2, 3, 8):
        sizes = {bucket(rows, shards) for rows in range(1, 257)}
        assert all(size % shards == 0 for size in sizes)
        assert len(sizes) <= 17
    assert [bucket(rows, 1) for rows in (1, 2, 3, 4, 5, 7, 9, 13)] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert [bucket(rows, 2) for rows in (1, 2, 3, 5)] == [2, 2, 4, 6]


@pytest.mark.parametrize(
    "config",
    [TINY, BASELINE, MODERN, dataclasses.replace(MODERN, classifier_pooling="mean")],
    ids=["mosaicbert", "bert", "modernbert", "modernbert, mean"],
)
def test_packed_logits_are_those_of_one_by_one(examples, config):
    model = BertForSequenceClassification(config, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    # Larger than the weights that training starts from, so that the encoder has its say.
    params = jax.tree.map(lambda x: 5 * x, nnx.to_pure_dict(params))
    mesh = sharding.make_mesh(-1)
    packed = logits_of(jitted_logits(graph), params, examples, mesh, size=16, row_length=48)
    step = jax.jit(lambda *arrays: nnx.merge(graph, params)(*arrays))
    alone = []
    for begin, end in itertools.pairwise(examples.starts_S):
        tokens, types, segments = (np.zeros((1, 48), np.int32) for _ in range(3))
        tokens[0, : end - begin] = examples.tokens_T[begin:end]
        types[0, : end - begin] = examples.types_T[begin:end]
        segments[0, : end - begin] = 1
        alone.append(np.asarray(step(tokens, segments, types))[0])
    np.testing.assert_allclose(packed, alone, atol=2e-5)
    assert np.std(packed) > 0.1


def test_unused_slots_change_no_loss(examples):
    """The sums of a batch of 5 of 16 slots are those of the 5 alone."""
    model = BertForSequenceClassification(TINY, rngs=nnx.Rngs(0))
    objective = CLASSES
    sums = nnx.jit(lambda model, batch: objective.sums(model, batch, None))
    found = []
    for size in (5, 16):
        arrays, _ = packed_batch(examples, np.arange(5), size=size, row_length=48, shards=1)
        found.append(sums(model, jax.tree.map(jnp.asarray, arrays)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)

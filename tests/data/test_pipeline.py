"""The stream of batches: what is in them, their order, and resuming at any position."""

import hashlib
import itertools
import json

import numpy as np
import pytest

from mosaicbert_jax.data import pipeline
from mosaicbert_jax.data.masking import predictions_per_row
from mosaicbert_jax.data.pipeline import Batch, PackedBatches, Position
from mosaicbert_jax.errors import UserError
from tests.data.pipeline_cases import (
    ARRAY_NAMES,
    MASK,
    PAD,
    SETTINGS,
    MemoryDataset,
    assert_same_batches,
    original_tokens,
    stream,
    unpacked,
)


def test_a_batch_holds_whole_sequences_and_their_labels():
    dataset = MemoryDataset(50)
    for batch in stream(dataset, 10):
        arrays = batch.arrays
        slots = predictions_per_row(24, 0.3)
        assert arrays["tokens_BL"].shape == arrays["segment_ids_BL"].shape == (4, 24)
        assert arrays["positions_BP"].shape == arrays["labels_BP"].shape == (4, slots)
        assert arrays["weights_BP"].shape == (4, slots)
        assert arrays["weights_BP"].dtype == np.float32
        assert {arrays[name].dtype for name in ARRAY_NAMES - {"weights_BP"}} == {np.dtype("int32")}
        found = unpacked(batch)
        for index, tokens, _ in found:
            np.testing.assert_array_equal(tokens, dataset.sequences[index])
        assert batch.sequences == len(found)
        assert batch.tokens == sum(len(tokens) for _, tokens, _ in found)
        assert batch.tokens == (arrays["segment_ids_BL"] > 0).sum()
        assert (arrays["tokens_BL"][arrays["segment_ids_BL"] == 0] == PAD).all()


def test_segments_count_from_one_and_padding_ends_the_row():
    for batch in stream(MemoryDataset(50), 10):
        for segments_L in batch.arrays["segment_ids_BL"]:
            real = segments_L[segments_L > 0]
            assert (segments_L[len(real) :] == 0).all()
            assert real[0] == 1
            assert set(np.diff(real)) <= {0, 1}


def test_prediction_slots_ascend_and_unused_ones_are_zero():
    chosen = 0
    for batch in stream(MemoryDataset(50), 10):
        for positions_P, labels_P, weights_P in zip(
            *(batch.arrays[name] for name in ("positions_BP", "labels_BP", "weights_BP")),
            strict=True,
        ):
            used = int(weights_P.sum())
            assert weights_P.tolist() == [1.0] * used + [0.0] * (len(weights_P) - used)
            assert (np.diff(positions_P[:used]) > 0).all()
            assert not positions_P[used:].any()
            assert not labels_P[used:].any()
            assert (labels_P[:used] > MASK).all()
            chosen += used
        masked_BL = batch.arrays["tokens_BL"] == MASK
        assert 0 < masked_BL.sum() <= batch.arrays["weights_BP"].sum()
    assert chosen > 100


def test_what_overflows_a_row_stays_unmasked_and_is_counted(monkeypatch):
    dataset = MemoryDataset(50)
    plenty = stream(dataset, 10)
    monkeypatch.setattr(pipeline, "predictions_per_row", lambda row_length, rate, unit: 4)
    scarce = stream(dataset, 10)
    assert sum(batch.overflowed for batch in scarce) > 10
    for full, cut in zip(plenty, scarce, strict=True):
        assert full.overflowed == 0
        weights_BP = cut.arrays["weights_BP"]
        assert cut.overflowed == full.arrays["weights_BP"].sum() - weights_BP.sum()
        np.testing.assert_array_equal(original_tokens(cut.arrays), original_tokens(full.arrays))
        for name in ("positions_BP", "labels_BP", "weights_BP"):
            np.testing.assert_array_equal(cut.arrays[name], full.arrays[name][:, :4])


@pytest.mark.parametrize("packing", [True, False])
def test_each_epoch_reads_every_sequence_once_in_an_order_of_its_own(packing):
    dataset = MemoryDataset(53)
    batches_ = stream(dataset, epochs=3, packing=packing)
    order = [index for batch in batches_ for index, *_ in unpacked(batch)]
    epochs = [order[start : start + 53] for start in (0, 53, 106)]
    assert len(order) == 3 * 53
    for epoch in epochs:
        assert sorted(epoch) == list(range(53))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert sum(batch.sequences for batch in batches_) == 3 * 53


@pytest.mark.parametrize("packing", [True, False])
def test_seeds_give_different_orders(packing):
    dataset = MemoryDataset(53)
    first, second = (stream(dataset, 1, seed=seed, packing=packing)[0] for seed in (17, 18))
    assert [i for i, *_ in unpacked(first)] != [i for i, *_ in unpacked(second)]


def test_neither_rows_nor_the_sequences_in_them_are_sorted_by_length():
    dataset = MemoryDataset(4000)
    window = stream(dataset, 1, rows_per_batch=1000, window_size=4000)[0]
    assert window.position.window == 0
    segment_ids_BL = window.arrays["segment_ids_BL"]
    lengths_BS = np.stack([(segment_ids_BL == s).sum(axis=1) for s in range(1, 7)], axis=1)
    # Best-fit decreasing opens each row with a shorter sequence than the row before.
    longest_B = lengths_BS.max(axis=1)
    assert abs(longest_B[:500].mean() - longest_B[500:].mean()) < 0.5
    pairs_B = lengths_BS[:, 2] == 0
    assert abs((lengths_BS[:, 0] - lengths_BS[:, 1])[pairs_B].mean()) < 1.0


def test_without_packing_each_sequence_has_its_row():
    dataset = MemoryDataset(30)
    for batch in stream(dataset, 7, packing=False):
        assert batch.sequences == 4
        assert (batch.arrays["segment_ids_BL"].max(axis=1) == 1).all()


def masks_by_sequence(dataset, **settings):
    return {
        index: masked.tolist()
        for batch in stream(dataset, epochs=1, **settings)
        for index, _, masked in unpacked(batch)
    }


@pytest.mark.parametrize(
    "other",
    [
        {"packing": False},
        {"row_length": 64},
        {"rows_per_batch": 9},
        {"window_size": 7},
    ],
    ids=str,
)
def test_masks_depend_on_nothing_but_seed_epoch_and_sequence(other):
    dataset = MemoryDataset(60)
    assert masks_by_sequence(dataset, **other) == masks_by_sequence(dataset)


def test_masks_differ_between_epochs():
    (batch,) = stream(MemoryDataset(1), 1, rows_per_batch=30)
    assert batch.position == Position(epoch=30)
    assert len({tuple(masked) for _, _, masked in unpacked(batch)}) > 3


# Windows that end within a batch, at its end, and far beyond it; fewer sequences than a batch.
SIZES = [
    pytest.param(53, 20, id="windows"),
    pytest.param(53, 100, id="one window"),
    pytest.param(3, 20, id="smaller than a batch"),
    pytest.param(1, 1, id="one sequence"),
]


@pytest.mark.parametrize(("sequences", "window_size"), SIZES)
@pytest.mark.parametrize("epochs", [None, 3])
def test_resuming_at_any_position_continues_the_stream(sequences, window_size, epochs):
    dataset = MemoryDataset(sequences)
    settings = {"window_size": window_size, "epochs": epochs}
    whole = stream(dataset, 24, **settings)
    for done, batch in enumerate(whole):
        saved = Position.from_dict(json.loads(json.dumps(batch.position.to_dict())))
        rest = whole[done + 1 : done + 5]
        resumed = iter(PackedBatches(dataset, position=saved, **SETTINGS | settings))
        assert_same_batches(list(itertools.islice(resumed, len(rest))), rest)
        assert resumed.get_state() == (rest[-1] if rest else batch).position.to_dict()


def test_set_state_brings_the_iterator_to_any_of_its_states():
    iterator = iter(PackedBatches(MemoryDataset(53), **SETTINGS))
    states = []
    expected = []
    for _ in range(12):
        states.append(iterator.get_state())
        expected.append(next(iterator))
    for step in (5, 0, 11, 3):
        iterator.set_state(states[step])
        assert_same_batches([next(iterator)], [expected[step]])


def test_resuming_plans_one_window():
    dataset = MemoryDataset(400)
    position = stream(dataset, 150)[-1].position
    assert position.epoch > 1
    dataset.lengths_read.clear()
    stream(dataset, 1, position=position, rows_per_batch=1)
    assert dataset.lengths_read == [20]


def test_evaluation_ends_with_padding_rows():
    dataset = MemoryDataset(3)
    (batch,) = stream(dataset, epochs=1, rows_per_batch=8, packing=False)
    assert isinstance(batch, Batch)
    assert batch.sequences == 3
    for name, empty in [("tokens_BL", PAD), ("segment_ids_BL", 0), ("weights_BP", 0)]:
        assert (batch.arrays[name][3:] == empty).all()
    assert batch.position == Position(epoch=1)
    assert stream(dataset, epochs=1, position=batch.position) == []


def test_a_batch_may_span_many_epochs():
    (batch,) = stream(MemoryDataset(2), 1, rows_per_batch=10, packing=False)
    assert batch.sequences == 10
    assert batch.position == Position(epoch=5)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"row_length": 15}, "row_length 15 is below the data set's max_seq_len 16"),
        ({"rows_per_batch": 6, "process_count": 4}, "divided evenly among 4 hosts: 8 can"),
        ({"rows_per_batch": 0}, "rows_per_batch 0"),
        ({"window_size": 0}, "window_size 0"),
        ({"masking_rate": 0.0}, "masking rate"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        PackedBatches(MemoryDataset(5), **SETTINGS | settings)


def test_an_empty_data_set_is_refused():
    with pytest.raises(UserError, match="no sequences"):
        PackedBatches(MemoryDataset(0), **SETTINGS)


@pytest.mark.parametrize("position", [Position(window=9), Position(row=999)])
def test_a_position_of_another_data_set_is_refused(position):
    with pytest.raises(UserError, match="resume with"):
        stream(MemoryDataset(53), 1, position=position)


@pytest.mark.parametrize(
    "record", [{"epoch": 1}, {"epoch": 1, "window": 0, "row": -1}, {"next_index": 4}]
)
def test_a_record_that_is_no_position_is_refused(record):
    with pytest.raises(UserError, match="data position"):
        Position.from_dict(record)


def test_the_stream_is_the_same_in_every_version():
    """A run that resumes after an upgrade has the same batches."""
    digest = hashlib.sha256()
    for batch in stream(MemoryDataset(53), 5):
        for name in sorted(ARRAY_NAMES):
            digest.update(batch.arrays[name].tobytes())
    assert digest.hexdigest()[:16] == "9848560d6f8a48e1"

"""Several data sets read as one: their shares, their order, and what is refused."""

import hashlib
import itertools

import numpy as np
import pytest

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.packing import RowPlanner
from mosaicbert_jax.data.pipeline import PackedBatches, Position
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from tests.data.pipeline_cases import (
    ARRAY_NAMES,
    SETTINGS,
    assert_same_arrays,
    assert_same_batches,
    original_tokens,
    stream,
    write_data_set,
)

SIZES = (40, 25, 10)
WEIGHTS = (0.5, 0.2, 0.3)
PLACES = (38, 15, 22)  # 37.5, 15 and 22.5 of 75


@pytest.fixture
def folders(tmp_path):
    return [
        str(write_data_set(tmp_path / f"set{n}", size, name=n, validation=size // 5))
        for n, size in enumerate(SIZES)
    ]


@pytest.fixture
def mixture(folders):
    return Mixture.open(tuple(zip(folders, WEIGHTS, strict=True)))


def drawn(mixture, epochs, seed=17):
    """(data set, index in it, pass) at each place of so many epochs, in order."""
    found = []
    for epoch in range(epochs):
        sequences_S, passes_S = mixture.drawn(np.arange(len(mixture)), epoch, seed)
        tokens_T, lengths_S = mixture.gather(sequences_S)
        begins_S = np.cumsum(lengths_S) - lengths_S
        names, indices = tokens_T[begins_S + 1] - 5, tokens_T[begins_S + 2] - 5
        found += zip(names.tolist(), indices.tolist(), passes_S.tolist(), strict=True)
    return found


def test_indices_go_through_one_data_set_after_the_other(mixture, folders):
    datasets = [TokenDataset(folder) for folder in folders]
    assert len(mixture) == 75
    expected_T, expected_S = (
        np.concatenate(arrays)
        for arrays in zip(*(d.gather(np.arange(len(d))) for d in datasets), strict=True)
    )
    tokens_T, lengths_S = mixture.gather(np.arange(75))
    np.testing.assert_array_equal(tokens_T, expected_T)
    np.testing.assert_array_equal(lengths_S, expected_S)
    ends_S = np.cumsum(expected_S)
    indices_S = np.array([70, 3, 64, 65, 3, 0, 39, 40])  # any order, with repetitions
    tokens_T, lengths_S = mixture.gather(indices_S)
    assert tokens_T.dtype == lengths_S.dtype == mixture.lengths(indices_S).dtype == np.int32
    np.testing.assert_array_equal(
        tokens_T, np.concatenate([np.split(expected_T, ends_S)[i] for i in indices_S])
    )
    np.testing.assert_array_equal(lengths_S, expected_S[indices_S])
    np.testing.assert_array_equal(mixture.lengths(indices_S), lengths_S)
    assert all(array.size == 0 for array in mixture.gather(np.array([], np.int64)))
    for wrong in (-1, 75):
        with pytest.raises(IndexError, match="outside 0 … 74"):
            mixture.lengths(np.array([wrong]))


def test_each_epoch_has_the_shares_spread_evenly(mixture):
    names = np.array([name for name, *_ in drawn(mixture, 4)])
    for epoch in np.split(names, 4):
        counts = [np.cumsum(epoch == number) for number in range(3)]
        assert tuple(count[-1] for count in counts) == PLACES
        for count, weight in zip(counts, WEIGHTS, strict=True):
            assert np.abs(count - weight * np.arange(1, 76)).max() < 2


@pytest.mark.parametrize(
    ("weights", "places"),
    [
        ((1, 1, 1), (25, 25, 25)),
        ((40, 25, 10), SIZES),
        ((0.7, 0.2, 0.1), (53, 15, 7)),  # 52.5, 15 and 7.5
        ((7, 2, 1), (53, 15, 7)),
        ((0.11, 0.12, 0.77), (8, 9, 58)),  # 8.25, 9 and 57.75
        ((1e9, 1e9, 1e-9), None),
    ],
)
def test_places_by_largest_remainder(folders, weights, places):
    shares = tuple(zip(folders, weights, strict=True))
    if places is None:
        with pytest.raises(UserError, match="set2 is below one of the mixture's 75 sequences"):
            Mixture.open(shares)
    else:
        assert Mixture.open(shares).places == places


def test_a_sequence_comes_again_only_after_all_of_its_data_set(mixture):
    found = drawn(mixture, 7)
    orders = set()
    for number, size in enumerate(SIZES):
        own = [(index, read) for name, index, read in found if name == number]
        assert len(own) > 2 * size
        for read in range(len(own) // size):
            turn = own[read * size : (read + 1) * size]
            assert sorted(index for index, _ in turn) == list(range(size))
            assert {r for _, r in turn} == {read}
            orders.add(tuple(index for index, _ in turn))
    assert len(orders) == sum(7 * p // s for p, s in zip(PLACES, SIZES, strict=True))


def test_data_sets_of_one_size_have_orders_of_their_own(tmp_path):
    folders = [write_data_set(tmp_path / f"{n}", 30, name=n) for n in range(2)]
    found = drawn(Mixture([TokenDataset(f) for f in folders], (1, 1)), 1)
    orders = [[index for name, index, _ in found if name == number] for number in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert orders[0] != orders[1]


def test_places_are_drawn_one_by_one_as_together(mixture):
    for epoch in (0, 5):
        together = mixture.drawn(np.arange(75), epoch, 17)
        alone = [mixture.drawn(np.array([place]), epoch, 17) for place in range(75)]
        for one, many in zip(zip(*alone, strict=True), together, strict=True):
            np.testing.assert_array_equal(np.concatenate(one), many)
    assert drawn(mixture, 1, seed=18) != drawn(mixture, 1)


def test_rows_keep_each_sequences_pass(mixture):
    """Packing moves sequences about; what decides their masks moves with them."""
    planner = RowPlanner(mixture, 24, 17, packing=True, window_size=75)
    rows = planner.plan(3, 0)
    sequences_S, passes_S = mixture.drawn(np.arange(75), 3, 17)
    assert len(set(passes_S.tolist())) > 2
    expected = sorted(zip(sequences_S.tolist(), passes_S.tolist(), strict=True))
    assert sorted(zip(rows.sequences_S.tolist(), rows.epochs_S.tolist(), strict=True)) == expected
    np.testing.assert_array_equal(rows.lengths_S, mixture.lengths(rows.sequences_S))


def test_a_sequence_read_again_has_another_mask(mixture):
    masks = {}
    for batch in stream(mixture, epochs=6, packing=False):
        originals_BL = original_tokens(batch.arrays)
        for original_L, masked_L in zip(originals_BL, batch.arrays["tokens_BL"], strict=True):
            masks.setdefault(original_L.tobytes(), []).append(masked_L.tobytes())
    most_read = [found for found in masks.values() if len(found) >= 6]
    assert len(most_read) >= SIZES[2]
    for found in most_read:
        assert len(set(found)) > 1


def test_the_stream_goes_on_from_any_position(mixture):
    whole = stream(mixture, epochs=3)
    assert_same_batches(stream(mixture, epochs=3), whole)
    assert whole[-1].position == Position(epoch=3)
    for done, batch in enumerate(whole):
        rest = whole[done + 1 : done + 4]
        resumed = PackedBatches(mixture, position=batch.position, **SETTINGS | {"epochs": 3})
        assert_same_batches(list(itertools.islice(iter(resumed), 3)), rest)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_make_the_batch_of_one(mixture, hosts):
    settings = {"rows_per_batch": 8, "epochs": 2}
    parts = [
        stream(mixture, process_index=host, process_count=hosts, **settings)
        for host in range(hosts)
    ]
    for expected, *per_host in zip(stream(mixture, **settings), *parts, strict=True):
        joined = {
            name: np.concatenate([batch.arrays[name] for batch in per_host]) for name in ARRAY_NAMES
        }
        assert_same_arrays(joined, expected.arrays)


def test_held_out_splits_are_mixed_with_the_same_weights(folders, tmp_path):
    nothing_held_out = str(write_data_set(tmp_path / "whole", 50, name=9))
    shares = (*zip(folders, WEIGHTS, strict=True), (nothing_held_out, 4.0))
    held_out = Mixture.open(shares).held_out()
    assert [len(dataset) for dataset in held_out.datasets] == [8, 5, 2]
    assert held_out.places == (8, 3, 4)  # 7.5, 3 and 4.5 of 15
    tokens_T, lengths_S = held_out.gather(np.arange(15))
    assert set(tokens_T[np.cumsum(lengths_S) - lengths_S + 3]) == {5 + len("validation")}
    assert Mixture.open(((nothing_held_out, 1),)).held_out() is None


def test_the_longest_sequences_decide(folders, tmp_path):
    longer = str(write_data_set(tmp_path / "longer", 5, max_seq_len=24))
    mixture = Mixture.open(((folders[0], 1), (longer, 1)))
    assert mixture.metadata.max_seq_len == 24
    with pytest.raises(UserError, match="row_length 20 is below"):
        PackedBatches(mixture, **SETTINGS | {"row_length": 20})


@pytest.mark.parametrize("weight", [0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none(folders, weight):
    with pytest.raises(UserError, match=r"set1: the weight .* must be above 0 and finite"):
        Mixture.open(((folders[0], 1), (folders[1], weight)))


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"tokenizer": "another"}, "other has another tokenizer than .*set0: prepare it again"),
        ({"validation_fraction": 0.1}, "other holds out a share of 0.1 and .*set0 of 0.05"),
        ({"sequences": 0}, "other: the data set has no sequences"),
    ],
)
def test_data_sets_that_do_not_go_together(folders, tmp_path, other, complaint):
    folder = str(write_data_set(tmp_path / "other", **{"sequences": 9} | other))
    with pytest.raises(UserError, match=complaint):
        Mixture.open(((folders[0], 1), (folder, 1)))


def test_a_folder_named_twice(folders, tmp_path):
    (tmp_path / "link").symlink_to(folders[0])
    for again in (folders[0], folders[0] + "/../set0", str(tmp_path / "link")):
        with pytest.raises(UserError, match="in the mixture twice: name it once"):
            Mixture.open(((folders[0], 1), (folders[1], 1), (again, 2)))
    with pytest.raises(UserError, match="no data sets"):
        Mixture.open(())


def test_a_data_set_prepared_with_the_tokenizer_of_another(corpus, dataset, tmp_path):
    """What the message about another tokenizer says to do."""
    options = PrepareOptions(
        inputs=(str(corpus),),
        output=str(tmp_path / "more"),
        tokenizer=str(dataset / "tokenizer.json"),
        max_seq_len=64,
    )
    prepare(options, lambda line: None)
    mixture = Mixture.open(((str(dataset), 1), (options.output, 3)))
    assert mixture.metadata.vocab_size == TokenDataset(dataset).metadata.vocab_size
    assert mixture.held_out() is not None


def test_the_stream_is_the_same_in_every_version(mixture):
    """A run that resumes after an upgrade has the same batches."""
    digest = hashlib.sha256()
    for batch in stream(mixture, 40):
        for name in sorted(ARRAY_NAMES):
            digest.update(batch.arrays[name].tobytes())
    assert digest.hexdigest()[:16] == "125ce166ed184e7c"

"""The sample: by digest alone, within its bytes, and never of held-out text."""

import numpy as np
import pytest

from mosaicbert_jax.preparation import sampling
from mosaicbert_jax.preparation.sampling import Candidates, Sample
from mosaicbert_jax.text.encoding import document_digest

TEXTS = [f"text {i} " + "x" * (i % 40) for i in range(500)]


def candidates(texts: list[str], limit: int = 2**64) -> Candidates:
    ranked = [(document_digest(text)[1], text.encode()) for text in texts]
    return Candidates(tuple((r, t) for r, t in ranked if r < limit), sum(map(len, texts)), ())


def sampled(texts: list[str], most_bytes: int, batch: int) -> Sample:
    sample = Sample(most_bytes)
    for start in range(0, len(texts), batch):
        sample.add(candidates(texts[start : start + batch], sample.limit))
    return sample


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_no_order_matters(batch):
    texts = [TEXTS[i] for i in np.random.default_rng(batch).permutation(len(TEXTS))]
    sample = sampled(texts, 3000, batch)
    assert list(sample) == list(sampled(TEXTS, 3000, 10))
    ranked = sorted(TEXTS, key=lambda text: document_digest(text)[1])
    assert list(sample) == ranked[: len(sample)]
    assert sample.bytes == sum(map(len, sample)) <= 3000 < sample.bytes + 60
    assert sample.read_bytes == sum(map(len, TEXTS))
    assert not sample.is_whole


@pytest.mark.parametrize("most_bytes", [1, 300, 3000, 10**6])
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_samples_of_parts_make_the_sample_of_the_whole(most_bytes, parts):
    """Whether a part was sampled with what was known before, as in a cluster, or without."""
    texts = [*TEXTS, *TEXTS[:100], *(f"{i} is long {'x' * 280}" for i in range(50))]
    texts = [texts[i] for i in np.random.default_rng(parts).permutation(len(texts))]
    whole = sampled(texts, most_bytes, 10)
    merged = Sample(most_bytes)
    for part in range(parts):
        one = Sample(most_bytes, merged.limit if part % 2 else 2**64)
        one.add(candidates(texts[part::parts], one.limit))
        merged.merge(one)
    assert list(merged) == list(whole)
    for name in ("limit", "bytes", "read_bytes", "is_whole"):
        assert getattr(merged, name) == getattr(whole, name)


def test_with_room_for_all_each_text_is_there_once():
    sample = sampled(TEXTS + TEXTS[:100], 10**6, 9)
    assert sorted(sample) == sorted(TEXTS)
    assert list(sample) == list(sample)
    assert len(sample) == 500
    assert sample.is_whole


def test_reader_leaves_out_what_is_held_out_blank_or_beyond_the_limit(tmp_path, monkeypatch):
    from mosaicbert_jax.text.readers import blocks
    from mosaicbert_jax.text.sources import find_sources
    from mosaicbert_jax.text.streams import Tally

    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in [*TEXTS, " "]) + "broken\n")
    (source,) = find_sources([path])
    (block,) = blocks(source.files[0], "text", Tally())
    held_out_below = 2**62
    read = sampling.CandidateReader("text", held_out_below)
    found = read((2**63, block))
    expected = [
        (rank, text.encode())
        for text in TEXTS
        for key, rank in [document_digest(text)]
        if key >= held_out_below and rank < 2**63
    ]
    assert list(found.ranked) == expected
    assert [problem.kind for problem in found.problems] == ["not JSON"]
    monkeypatch.setattr(sampling, "_DOCUMENT_CHARS", 6)
    assert {text for _, text in read((2**64, block)).ranked} <= {
        text[: sampling.cut_point(text, 0, 6)].encode() for text in TEXTS
    }
    assert read((2**64, found.problems[0])).problems == found.problems

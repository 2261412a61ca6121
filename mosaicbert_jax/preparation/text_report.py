"""What is in a data set and how well its tokenizer suits the text: `prepare --report`.

All that is said of the text is counted in the shards, and is exact. All that is said of words is
counted in a sample of the documents, since ids alone don't say where a word ends.

Shape letters: S sequences, T tokens, V entries of the vocabulary, L lengths 0 … max_seq_len,
N bins of the histogram.
"""

import dataclasses
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer

from mosaicbert_jax.data.dataset import DatasetMetadata, TokenDataset
from mosaicbert_jax.data.packing import pack, packing_efficiency
from mosaicbert_jax.markdown import (
    WIDTH,
    counted,
    padded,
    percent,
    printable,
    shortened,
    table,
    verbatim,
    wrapped,
)
from mosaicbert_jax.preparation.description import MANY_UNKNOWN
from mosaicbert_jax.preparation.tokenizer_figures import (
    TokenizerFigures,
    count_words,
    frequent_words,
    tokenizer_figures,
)
from mosaicbert_jax.text.tokenizer import load_tokenizer

_LISTED_SOURCES = 10
_LISTED_WORDS = 10
_COMPARED_WORDS = 12
# The rows of training: recipes pack into 512 tokens, and plan 8,192 sequences at a time.
_PACKED_ROW_LENGTH = 512
_PACKED_SEQUENCES = 8192
# As many as stay in a processor's cache; more are slower.
_TOKENS_A_READ = 2**17
# Beyond these shares the report warns. English under bert-base-uncased stays far below them.
_MANY_TRUNCATED = 0.2
_MANY_UNUSED = 0.1


def text_report(
    folder: str | os.PathLike,
    sample: Sequence[str],
    compare_with: Tokenizer | None = None,
    compare_name: str = "the other",
) -> str:
    """Describe a prepared data set in Markdown of at most 100 columns, fit for a terminal.

    Args:
      folder: the data set.
      sample: text of some of its documents, a few MB; may be empty.
      compare_with: a second tokenizer, whose figures then stand beside those of the data set's.
      compare_name: what the report calls it.

    Raises:
      UserError: the data set is missing or damaged.
    """
    metadata = DatasetMetadata.load(folder)
    splits = {name: _split_figures(TokenDataset(folder, name)) for name in metadata.splits}
    counts_V = sum(split.counts_V for split in splits.values())
    words = count_words(sample)
    names_and_tokenizers = [("this tokenizer", load_tokenizer(metadata.tokenizer_path))]
    if compare_with is not None:
        names_and_tokenizers.append((shortened(printable(compare_name), 26), compare_with))
    figures = [
        tokenizer_figures(tokenizer, name, sample, words)
        for name, tokenizer in names_and_tokenizers
    ]
    used = _used_entries(figures[0], counts_V)
    paragraphs = [
        f"# Data set {metadata.folder.resolve().name}",
        _sources(metadata),
        *_warnings(metadata, splits, figures[0], used),
        "## Text",
        _text_table(metadata, splits),
        _histogram(metadata.max_seq_len, splits),
        "## Tokenizer",
        _sample_sentence(sample, words),
        _tokenizer_table(figures, used),
        _longest_pieces(figures[0], counts_V),
    ]
    if words:
        paragraphs += _word_lists(figures[0], words)
    if words and compare_with is not None:
        paragraphs += _comparison(figures[0], figures[1], words, metadata.max_seq_len)
    return "\n\n".join(paragraphs) + "\n"


@dataclasses.dataclass(frozen=True)
class _SplitFigures:
    """What the shards of one split hold.

    Attributes:
      counts_V: how often each id occurs; ids up to the padded vocabulary's size.
      sequences_L: how many sequences have 0, 1, 2 … tokens.
      unknown: the share of [UNK] in the tokens, [CLS] and [SEP] aside.
      packed: the share of real tokens in rows of `packed_row_length`, as training packs a window.
    """

    counts_V: Int64[np.ndarray, "V"]
    sequences_L: Int64[np.ndarray, "L"]
    unknown: float
    packed: float
    packed_row_length: int

    @property
    def sequences(self) -> int:
        return int(self.sequences_L.sum())

    @property
    def tokens(self) -> int:
        return int(self.counts_V.sum())

    def length_at(self, percent: int) -> int:
        """The length that at least so many of a hundred sequences don't exceed."""
        reached_L = np.cumsum(self.sequences_L)
        return int(np.searchsorted(100 * reached_L, percent * reached_L[-1]))


def _split_figures(dataset: TokenDataset) -> _SplitFigures:
    """Count one split, a few thousand sequences at a time; 100M tokens take about two seconds.

    Raises:
      UserError: a shard is damaged.
    """
    metadata = dataset.metadata
    counts_V = np.zeros(metadata.padded_vocab_size, np.int64)
    sequences_L = np.zeros(metadata.max_seq_len + 1, np.int64)
    at_once = max(1, _TOKENS_A_READ // metadata.max_seq_len)
    for first in range(0, len(dataset), at_once):
        indices_S = np.arange(first, min(first + at_once, len(dataset)))
        tokens_T, lengths_S = dataset.gather(indices_S)
        counts_V += np.bincount(tokens_T, minlength=len(counts_V))
        sequences_L += np.bincount(lengths_S, minlength=len(sequences_L))
    ids = metadata.special_token_ids
    of_text = counts_V.sum() - counts_V[ids.cls] - counts_V[ids.sep]
    row_length = max(_PACKED_ROW_LENGTH, metadata.max_seq_len)
    window = min(len(dataset), _PACKED_SEQUENCES)
    drawn_S = np.random.default_rng(0).choice(len(dataset), window, replace=False, shuffle=False)
    lengths_S = dataset.lengths(drawn_S)
    rows = pack(lengths_S, row_length).num_rows
    return _SplitFigures(
        counts_V=counts_V,
        sequences_L=sequences_L,
        unknown=float(counts_V[ids.unk] / max(1, of_text)),
        packed=packing_efficiency(lengths_S, rows, row_length),
        packed_row_length=row_length,
    )


def _used_entries(figures: TokenizerFigures, counts_V: Int64[np.ndarray, "V"]) -> list[int]:
    """The ids of the entries, special tokens aside, that occur in the data set."""
    return [i for i in np.flatnonzero(counts_V).tolist() if i in figures.entries]


def _sources(metadata: DatasetMetadata) -> str:
    sources = "\n".join(
        f"- {shortened(source.name, 60)}: {counted(source.documents, 'document')}, "
        f"{source.bytes / 1e6:,.1f} MB"
        for source in metadata.sources[:_LISTED_SOURCES]
    )
    more = metadata.sources[_LISTED_SOURCES:]
    if more:
        documents = sum(source.documents for source in more)
        sources += f"\n- {counted(len(more), 'more input')}: {counted(documents, 'document')}, "
        sources += f"{sum(source.bytes for source in more) / 1e6:,.1f} MB"
    dropped = (
        f"Dropped: {counted(metadata.dropped_duplicates, 'duplicate')} and "
        f"{counted(metadata.dropped_empty, 'empty document')}."
    )
    skipped = ", ".join(f"{kind} ({count:,})" for kind, count in metadata.skipped.items() if count)
    if skipped:
        dropped += "\n" + textwrap.fill(f"Could not be read and was skipped: {skipped}.", WIDTH)
    return f"{sources}\n\n{dropped}"


def _warnings(
    metadata: DatasetMetadata,
    splits: dict[str, _SplitFigures],
    figures: TokenizerFigures,
    used: list[int],
) -> Iterator[str]:
    """What a person should look at, most important first."""
    for name, split in splits.items():
        if split.unknown > MANY_UNKNOWN:
            yield (
                f"**Warning:** {percent(split.unknown)} of the tokens of {name} are [UNK], of "
                "which a model learns nothing.\nClean the text, use a tokenizer trained on it, or "
                "--tokenizer-model bpe."
            )
    for name, record in metadata.splits.items():
        share = record.truncated_documents / record.documents
        if share > _MANY_TRUNCATED:
            yield (
                f"**Warning:** {percent(share)} of the documents of {name} are cut at "
                f"{metadata.max_seq_len} tokens.\nWith `--long-documents split` nothing is lost."
            )
    unused = 1 - len(used) / max(1, len(figures.entries))
    if unused > _MANY_UNUSED:
        yield (
            f"**Warning:** {percent(unused)} of the vocabulary never occurs in the data set.\n"
            "The model would be smaller and faster with fewer entries, trained on this text."
        )


def _text_table(metadata: DatasetMetadata, splits: dict[str, _SplitFigures]) -> str:
    records = [metadata.splits[name] for name in splits]
    figures = list(splits.values())
    longest = metadata.max_seq_len
    rows = [
        ["documents", *(f"{record.documents:,}" for record in records)],
        [
            f"… cut at {longest:,} tokens",
            *(percent(each.truncated_documents / each.documents) for each in records),
        ],
        ["sequences", *(f"{split.sequences:,}" for split in figures)],
        ["tokens, with [CLS] and [SEP]", *(f"{split.tokens:,}" for split in figures)],
        ["share of [UNK] in the text's tokens", *(percent(split.unknown) for split in figures)],
        [
            "tokens a sequence: mean",
            *(f"{split.tokens / split.sequences:,.1f}" for split in figures),
        ],
        ["… half have at most", *(f"{split.length_at(50):,}" for split in figures)],
        ["… 90% have at most", *(f"{split.length_at(90):,}" for split in figures)],
        [
            f"real tokens in rows of {longest:,}, one sequence each",
            *(percent(split.tokens / (split.sequences * longest)) for split in figures),
        ],
        [
            f"real tokens in rows of {figures[0].packed_row_length:,}, packed",
            *(percent(split.packed) for split in figures),
        ],
    ]
    return table(["", *splits], rows)


def _histogram_bins(max_seq_len: int) -> list[int]:
    """The first length of each bin: about 10 of equal width that end at max_seq_len."""
    even = [bins for bins in range(8, 13) if max_seq_len % bins == 0]
    bins = min(even, key=lambda number: abs(number - 10), default=10)
    return list(range(1, max_seq_len + 1, -(-max_seq_len // bins)))


def _histogram(max_seq_len: int, splits: dict[str, _SplitFigures]) -> str:
    starts_N = _histogram_bins(max_seq_len)
    ends_N = [*(start - 1 for start in starts_N[1:]), max_seq_len]
    width = min(40, (WIDTH - 14) // len(splits) - 11)
    columns = []
    for name, split in splits.items():
        shares_N = np.add.reduceat(split.sequences_L, starts_N) / split.sequences
        most = shares_N.max()
        column = [
            f"{_bar(share / most, width)} {percent(share):>8}" if share else "·"
            for share in shares_N.tolist()
        ]
        columns.append([name, *column])
    labels = [f"{start:>5,}–{end:<6,}" for start, end in zip(starts_N, ends_N, strict=True)]
    lines = zip(["tokens", *labels], *columns, strict=True)
    text = "\n".join(
        (f"{label:<12}  " + "  ".join(padded(cell, width + 9) for cell in cells)).rstrip()
        for label, *cells in lines
    )
    return f"Length of the sequences:\n\n{verbatim(text)}"


def _bar(share: float, width: int) -> str:
    """A bar of eighths of a character, padded to `width`; never quite empty."""
    eighths = max(1, round(8 * width * share))
    bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
    return bar.ljust(width)


def _sample_sentence(sample: Sequence[str], words: Counter[str]) -> str:
    if not words:
        return "The sample has no words, so there is little to say of the tokenizer."
    characters = sum(map(len, sample))
    return (
        f"Measured on a sample of {counted(len(sample), 'document')}, "
        f"{counted(characters, 'character')}, {counted(words.total(), 'word')}.\n"
        "A word is what BERT's pre-tokenizer yields: each punctuation mark is a word too."
    )


def _tokenizer_table(figures: list[TokenizerFigures], used: list[int]) -> str:
    def share(part: int, tokenizer: TokenizerFigures) -> str:
        return percent(part / max(1, len(tokenizer.entries)))

    rows = [
        [
            "entries of the vocabulary, 5 special ones aside",
            *(f"{len(tokenizer.entries):,}" for tokenizer in figures),
        ],
        ["… that occur in the data set", share(len(used), figures[0]), *["–"] * len(figures[1:])],
    ]
    if figures[0].pieces:
        rows += [
            ["… that occur in the sample", *(share(each.used, each) for each in figures)],
            ["tokens of the sample", *(f"{each.tokens:,}" for each in figures)],
            ["tokens a word", *(f"{each.tokens_a_word:.3f}" for each in figures)],
            ["characters a token", *(f"{each.characters_a_token:.2f}" for each in figures)],
            ["words of one piece", *(percent(each.whole) for each in figures)],
            ["words with [UNK]", *(percent(each.unknown) for each in figures)],
        ]
    return table(["", *(tokenizer.name for tokenizer in figures)], rows)


def _longest_pieces(figures: TokenizerFigures, counts_V: Int64[np.ndarray, "V"]) -> str:
    used = _used_entries(figures, counts_V)
    used.sort(key=lambda i: (-len(figures.entries[i].removeprefix("##")), -counts_V[i], i))
    entries = [figures.entries[i] for i in used[:_LISTED_WORDS]]
    return "Longest pieces in the data set:\n\n" + verbatim(wrapped(entries or ["none"]))


def _word_lists(figures: TokenizerFigures, words: Counter[str]) -> Iterator[str]:
    frequent = frequent_words(words, figures)
    frequent.sort(key=lambda item: (-len(figures.pieces[item[0]]), -item[1], item[0]))
    split = [
        [shortened(word, 24), f"{count:,}", figures.spelt(word, WIDTH - 44)]
        for word, count in frequent[:_LISTED_WORDS]
        if len(figures.pieces[word]) > 1
    ]
    if split:
        yield "Frequent words in the most pieces:"
        yield table(["word", "times", "pieces"], split, left=(0, 2))
    unknown = [item for item in words.items() if not figures.knows(item[0])]
    if unknown:
        unknown.sort(key=lambda item: (-item[1], item[0]))
        shown = [f"{shortened(word, 24)} ({count:,})" for word, count in unknown[:_LISTED_WORDS]]
        yield "Words with [UNK], most frequent first:\n\n" + verbatim(wrapped(shown))


def _comparison(
    ours: TokenizerFigures, other: TokenizerFigures, words: Counter[str], max_seq_len: int
) -> Iterator[str]:
    yield _length_sentence(ours, other, max_seq_len)

    def saved(item: tuple[str, int]) -> int:
        """By how many tokens the sample differs because of this word."""
        word, count = item
        return count * abs(len(ours.pieces[word]) - len(other.pieces[word]))

    differing = [item for item in frequent_words(words, ours, other) if saved(item)]
    differing.sort(key=lambda item: (-saved(item), item[0]))
    if differing:
        yield "Words in which the two differ most (times in the sample × pieces saved):"
        yield table(
            ["word", "times", ours.name, other.name],
            [
                [shortened(word, 20), f"{count:,}", ours.spelt(word, 28), other.spelt(word, 28)]
                for word, count in differing[:_COMPARED_WORDS]
            ],
            left=(0, 2, 3),
        )


def _length_sentence(ours: TokenizerFigures, other: TokenizerFigures, max_seq_len: int) -> str:
    """What the difference means for how much text a sequence holds."""
    if ours.tokens and other.tokens and ours.tokens != other.tokens:
        better, worse = sorted((ours, other), key=lambda figures: figures.tokens)
        room = max_seq_len - 2  # [CLS] and [SEP]
        sentence = (
            f"For the same text, {better.name} needs {percent(1 - better.tokens / worse.tokens)} "
            f"fewer tokens than {worse.name}:\n{max_seq_len:,} tokens hold "
            f"{percent(worse.tokens / better.tokens - 1)} more of it, "
            f"{room / better.tokens_a_word:,.0f} words "
            f"instead of {room / worse.tokens_a_word:,.0f}."
        )
    else:
        sentence = f"For the same text, {ours.name} and {other.name} need as many tokens."
    if abs(ours.unknown - other.unknown) > MANY_UNKNOWN:
        worst = max(ours, other, key=lambda figures: figures.unknown)
        sentence += (
            f"\nMind that {worst.name} saves tokens by losing words:\n"
            "an [UNK] is one token, however long the word."
        )
    return sentence

"""A prepared data set in a few lines."""

from collections.abc import Mapping, Sequence

from mosaicbert_jax.data.dataset import DatasetMetadata

MANY_UNKNOWN = 0.01
_SOURCES_SHOWN = 10


def describe_dataset(
    metadata: DatasetMetadata, skipped_places: Sequence[str], unknown_tokens: Mapping[str, int]
) -> list[str]:
    """What became of the inputs, for the terminal.

    Args:
      skipped_places: of the first inputs that could not be read.
      unknown_tokens: of each split, how many are [UNK].
    """
    lines = [
        f"read {source.documents:,} documents from {source.name}"
        for source in metadata.sources[:_SOURCES_SHOWN]
    ]
    more = metadata.sources[_SOURCES_SHOWN:]
    if more:
        documents = sum(source.documents for source in more)
        lines.append(f"read {documents:,} documents from {len(more):,} further inputs")
    lines.append(
        f"dropped {metadata.dropped_duplicates:,} duplicates and {metadata.dropped_empty:,} empty"
    )
    if metadata.skipped:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(metadata.skipped.items()))
        lines.append(f"skipped what can't be read: {kinds}")
        lines += [f"  {place}" for place in skipped_places]
    for name, split in metadata.splits.items():
        share = split.truncated_documents / split.documents
        unknown = unknown_tokens[name] / max(1, split.tokens - 2 * split.sequences)
        lines.append(
            f"{name}: {split.documents:,} documents, {split.sequences:,} sequences, "
            f"{split.tokens:,} tokens; {share:.1%} of the documents truncated, {unknown:.2%} of "
            "the tokens [UNK]"
        )
        if unknown > MANY_UNKNOWN and name == "train":
            lines.append(
                f"warning: {unknown:.1%} of the tokens of {name} are [UNK], of which nothing is "
                "learned: words that the tokenizer cannot spell, or that are longer than 100 "
                "characters. Train --tokenizer-model bpe, to which nothing is unknown, or give a "
                "larger --vocab-size or a --tokenizer made for this text"
            )
    if metadata.options["validation_fraction"] and "validation" not in metadata.splits:
        lines.append(
            "no validation split: no document fell in the held-out share; raise validation_fraction"
        )
    kind = "trained" if metadata.options["tokenizer"] == "trained" else "given"
    lines.append(
        f"vocabulary: {metadata.vocab_size:,} entries ({kind}), "
        f"padded to {metadata.padded_vocab_size:,}"
    )
    lines.append(f"data set: {metadata.folder}")
    return lines

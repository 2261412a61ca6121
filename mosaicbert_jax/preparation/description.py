"""A prepared data set in a few lines."""

from collections.abc import Sequence

from mosaicbert_jax.data.dataset import DatasetMetadata

_SOURCES_SHOWN = 10


def describe_dataset(metadata: DatasetMetadata, skipped_places: Sequence[str]) -> list[str]:
    """What became of the inputs, for the terminal.

    Args:
      skipped_places: of the first inputs that could not be read.
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
        lines.append(
            f"{name}: {split.documents:,} documents, {split.sequences:,} sequences, "
            f"{split.tokens:,} tokens; {share:.1%} of the documents truncated"
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

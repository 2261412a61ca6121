"""From text to a data set on disk: the function behind `mosaicbert prepare`.

The inputs are streamed: once for a sample on which the tokenizer is trained, once for their ids.
This machine does it (local.py), or a cluster (cluster.py), with the same bytes.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mosaicbert_jax import buckets
from mosaicbert_jax.buckets import BucketPath, Place
from mosaicbert_jax.data.dataset import METADATA_FILE, DatasetMetadata, SplitRecord, TokenizerRecord
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import write_atomically, write_synced
from mosaicbert_jax.preparation.assembly import Assembly
from mosaicbert_jax.preparation.description import describe_dataset
from mosaicbert_jax.preparation.execution import Execution
from mosaicbert_jax.preparation.inputs import Inputs
from mosaicbert_jax.preparation.local import OneMachine
from mosaicbert_jax.preparation.text_report import text_report
from mosaicbert_jax.preparation.unfinished import (
    Workspace,
    is_prepared,
    remove_emptied,
    workspace,
)
from mosaicbert_jax.progress import ByteProgress, while_ticking
from mosaicbert_jax.text.encoding import Encoder
from mosaicbert_jax.text.sources import find_sources
from mosaicbert_jax.text.tokenizer import (
    is_lowercase,
    load_tokenizer,
    padded_vocab_size,
    special_token_ids,
    tokenizer_files,
    vocab_size,
)
from mosaicbert_jax.text.tokenizer_training import (
    BPE_MODEL,
    WORDPIECE,
    check_vocab_size,
    train_tokenizer,
)
from mosaicbert_jax.text.vocabulary import token_dtype

_LARGEST_SCALED = 30_522  # bert-base-uncased's
TOKENIZER_SAMPLE_BYTES = 100_000_000
REPORT_SAMPLE_BYTES = 4_000_000
REPORT_FILE = "report.md"
TOKENIZER_FILE = "tokenizer.json"
_FILES_OF_A_TOKENIZER = (TOKENIZER_FILE, "vocab.txt")
_SCALED = "scaled"  # to the text


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how.

    Attributes:
      inputs: files, folders, globs, "embedded" or "tfds:NAME"; see `sources.find_sources`.
      output: the folder of the data set, which may be in a bucket.
      field: the key or column that holds the text, where there are such.
      max_seq_len: most tokens of a sequence, [CLS] and [SEP] included.
      validation_fraction: the share of documents held out, drawn by the digest of their text. 5%
        gives a small corpus enough for a steady loss; a large one needs less. 0: no such split.
      tokenizer: a vocab.txt, a tokenizer.json or a Hugging Face folder; None trains one, on at
        most 100 MB of the training documents, drawn by digest.
      vocab_size: entries of the tokenizer trained here; None: see `scaled_vocab_size`.
      lowercase: whether the tokenizer trained here lower-cases; None: WordPiece does, BPE doesn't.
        One that is given decides itself.
      tokenizer_model: of a tokenizer trained here, "wordpiece" or "bpe" (byte-level).
      special_tokens: of `tokenizer`, by role; see `load_tokenizer`.
      long_documents: "truncate" keeps the first max_seq_len tokens of a document, as the recipe
        does; "split" makes consecutive sequences of them all.
      deduplicate: drop all but the first of documents with the same text. Takes 8 bytes of memory
        a document, 16 for moments. (All of the same text are in one split, dropped or not.)
      on_error: "stop" at the first input that can't be read, or "skip" and count it.
      workers: processes that parse and encode; None: one a core. Changes nothing in the result.
      cluster: the address of a Ray cluster that does the work; None: this machine does. Changes
        nothing in the result. See `cluster.connected`.
      report: whether to write a report on text and tokenizer, and show it.
      compare_with: a second tokenizer for the report, as in `tokenizer`.
    """

    inputs: tuple[str, ...]
    output: str
    field: str = "text"
    max_seq_len: int = 128
    validation_fraction: float = 0.05
    tokenizer: str | None = None
    vocab_size: int | None = None
    lowercase: bool | None = None
    tokenizer_model: str = WORDPIECE
    special_tokens: tuple[tuple[str, str], ...] = ()
    long_documents: str = "truncate"
    deduplicate: bool = True
    on_error: str = "stop"
    workers: int | None = None
    cluster: str | None = None
    report: bool = False
    compare_with: str | None = None


def prepare(options: PrepareOptions, say: Callable[[str], None] = print) -> DatasetMetadata:
    """Write a data set (see `dataset`) atomically, and describe it in a few lines.

    Documents without text are dropped and counted, exact duplicates too if asked for. Documents
    are held out by the digest of their text, so that the choice depends on no order and all
    pieces of a document lie in one split; the tokenizer is trained on the others only. Equal
    options and inputs give equal bytes. An output that holds this very data set already is kept.
    After an interruption, the next call resumes from what is finished.

    Returns:
      The metadata of the data set, new or kept.

    Raises:
      UserError: an option or input is wrong, no training document is left, the output holds
        something else, or it can't be written.
    """
    _check(options)
    inputs = Inputs(
        sources=tuple(find_sources(options.inputs)),
        field=options.field,
        stop_on_error=options.on_error == "stop",
        held_out_below=int(options.validation_fraction * 2**64),
        workers=options.workers,
    )
    given = None
    if options.tokenizer is not None:
        path = buckets.local_copy(options.tokenizer)
        given = load_tokenizer(path, special_tokens=dict(options.special_tokens))
    if given is not None and is_lowercase(given) and options.lowercase is False:
        raise UserError(
            f"lowercase=False: the tokenizer {options.tokenizer} lower-cases; give a cased one"
        )
    other = None
    if options.compare_with is not None:
        other = load_tokenizer(buckets.local_copy(options.compare_with))
    recorded = _recorded_options(options, given)
    output = _output_folder(options.output)
    try:
        with _executing(options.cluster) as execution:
            metadata = _existing(output, recorded, inputs)
            if metadata is not None:
                remove_emptied(output)
                say(f"{output} is up to date: same options, same inputs")
            else:
                metadata = _new(output, options, recorded, inputs, given, execution, say)
            if options.report:
                _report(metadata, inputs, options, other, execution, say)
    except BrokenPipeError:
        raise  # from `say`: its reader has seen enough
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: {error.strerror or error}; {output} was not written; "
            "fix this and run it again to resume from what is finished"
        ) from None
    return metadata


@contextlib.contextmanager
def _executing(cluster: str | None) -> Iterator[Execution]:
    if cluster is None:
        yield OneMachine()
        return
    from mosaicbert_jax.preparation.cluster import connected

    with connected(cluster) as execution:
        yield execution


def _new(
    output: Place,
    options: PrepareOptions,
    recorded: dict[str, Any],
    inputs: Inputs,
    given: Tokenizer | None,
    execution: Execution,
    say: Callable[[str], None],
) -> DatasetMetadata:
    """Writes and describes a data set that is not there yet."""
    if isinstance(output, Path) and output.is_mount():  # which can't be replaced
        raise UserError(f"{output}: a file system is mounted there; name a new folder in it")
    with workspace(output, recorded, inputs.stamps()) as work:
        try:
            execution.check(inputs, work.bucket or work.folder)
            metadata = _build(work, options, recorded, inputs, given, execution, say)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_where_it_resumes(work)) from None
    metadata = dataclasses.replace(metadata, folder=output)
    unknown = {name: split.unknown_tokens for name, split in work.progress.splits.items()}
    for line in describe_dataset(metadata, work.progress.skipped_places, unknown):
        say(line)
    return metadata


def _where_it_resumes(work: Workspace) -> str:
    """What to say when a preparation is interrupted."""
    sequences = sum(split.sequences for split in work.progress.splits.values())
    if sequences:
        done = f"{sequences:,} sequences are written, and the same command resumes behind them"
    elif (work.data / TOKENIZER_FILE).is_file():
        done = "the tokenizer is written, and the same command resumes behind it"
    else:
        done = "nothing was written yet; the same command starts from the beginning"
    return f"interrupted: {done}"


def _output_folder(path: str) -> Place:
    """Where the finished folder is moved to: not a link, which it could not replace."""
    if buckets.is_url(path):
        return buckets.place(path)
    output = Path(os.path.abspath(path))
    return Path(os.path.realpath(output)) if output.is_symlink() else output


def _check(options: PrepareOptions) -> None:
    if options.max_seq_len < 8:
        raise UserError(f"max_seq_len {options.max_seq_len}: at least 8 tokens are needed")
    if not 0 <= options.validation_fraction < 1:
        raise UserError(
            f"validation_fraction {options.validation_fraction}: give a share from 0 to below 1"
        )
    if options.long_documents not in ("truncate", "split"):
        raise UserError(f'long_documents {options.long_documents!r}: give "truncate" or "split"')
    if options.on_error not in ("stop", "skip"):
        raise UserError(f'on_error {options.on_error!r}: give "stop" or "skip"')
    if options.workers is not None and options.workers < 1:
        raise UserError(f"workers {options.workers}: at least 1 is needed")
    if options.workers is not None and options.cluster is not None:
        raise UserError(
            "workers is for one machine; with cluster, the CPUs that its nodes were started with "
            "count (ray start --num-cpus)"
        )
    if options.tokenizer is not None and options.vocab_size is not None:
        raise UserError("vocab_size is for a tokenizer trained here; give one of them")
    if options.vocab_size is not None:
        check_vocab_size(options.vocab_size, options.tokenizer_model)  # before the inputs are read
    output = _output_folder(options.output).resolve()
    for each in options.inputs:
        if isinstance(output, BucketPath):
            is_inside = buckets.is_url(each) and f"{output}/".startswith(f"{buckets.place(each)}/")
        else:
            is_inside = os.path.isdir(each) and output.is_relative_to(Path(each).resolve())
        if is_inside:
            raise UserError(f"{options.output}: it would lie in the input {each}; choose another")
    if options.compare_with is not None and not options.report:
        raise UserError("compare_with is for the report; ask for that too")


def _recorded_options(options: PrepareOptions, given: Tokenizer | None) -> dict[str, Any]:
    """All that changes the result besides the inputs' bytes."""
    recorded = {
        "field": options.field,
        "validation_fraction": options.validation_fraction,
        "long_documents": options.long_documents,
        "max_seq_len": options.max_seq_len,
        "deduplicate": options.deduplicate,
        "on_error": options.on_error,
    }
    if given is None:
        lowercase = options.lowercase
        return recorded | {
            "tokenizer": "trained BPE" if options.tokenizer_model == BPE_MODEL else "trained",
            "tokenizer_sample_bytes": TOKENIZER_SAMPLE_BYTES,
            "vocab_size": _SCALED if options.vocab_size is None else options.vocab_size,
            "lowercase": options.tokenizer_model != BPE_MODEL if lowercase is None else lowercase,
        }
    return recorded | {
        "tokenizer": hashlib.sha256(given.to_str().encode()).hexdigest(),
        "tokenizer_sample_bytes": None,
        "vocab_size": None,
        "lowercase": is_lowercase(given),
    }


def _existing(output: Place, recorded: dict[str, Any], inputs: Inputs) -> DatasetMetadata | None:
    """The data set at `output` if it is the one asked for; None if there is nothing.

    Raises:
      UserError: there is something else; nothing is ever overwritten.
    """
    if not is_prepared(output):
        return None
    advice = "choose another output, or remove it"
    if not output.is_dir():
        raise UserError(f"{output}: a file with this name exists; {advice}")
    if not (output / METADATA_FILE).is_file():
        raise UserError(f"{output}: the folder has other files and no data set; {advice}")
    metadata = DatasetMetadata.load(output)
    for name, value in recorded.items():
        if metadata.options.get(name) != value:
            raise UserError(
                f"{output}: a data set with {name} = {metadata.options.get(name)!r} is there, and "
                f"{value!r} is given; {advice}"
            )
    there = [source.sha256 for source in metadata.sources]
    asked = inputs.digests()
    if asked == there:
        return metadata
    changed = [
        source.name
        for source, digest in zip(inputs.sources, asked, strict=True)
        if digest not in there
    ]
    if changed:
        why = f"{', '.join(changed)} is not in it, or has changed since"
    else:
        why = f"it is made of {', '.join(source.name for source in metadata.sources)} in this order"
    raise UserError(f"{output}: a data set from other inputs is there ({why}); {advice}")


def _build(
    work: Workspace,
    options: PrepareOptions,
    recorded: dict[str, Any],
    inputs: Inputs,
    given: Tokenizer | None,
    execution: Execution,
    say: Callable[[str], None],
) -> DatasetMetadata:
    """Fills the workspace, from where it is, with a whole data set."""
    for note in filter(None, (source.note for source in inputs.sources)):
        say(f"note: {note}")
    path = work.data / TOKENIZER_FILE
    if path.is_file():
        tokenizer = load_tokenizer(path)
        say(f"resuming the unfinished preparation in {work.bucket or work.folder}")
    else:
        tokenizer = given or _trained(inputs, recorded, options.tokenizer_model, execution, say)
        for name, text in tokenizer_files(tokenizer).items():
            write_synced(work.data / name, text.encode() + (b"\n" if name == path.name else b""))
        work.progress.documents = [0] * len(inputs.files)
        if given is None or work.bucket is not None:
            work.save()
    split_long = options.long_documents == "split"
    encoder = Encoder(tokenizer.to_str(), options.field, options.max_seq_len, split_long)
    dtype = token_dtype(padded_vocab_size(vocab_size(tokenizer)))
    Assembly(work, inputs, encoder, dtype, options.deduplicate, execution).run(say)
    work.check_unchanged()
    progress = work.progress
    train = progress.splits["train"]
    if not train.documents:
        work.discard()
        raise UserError(
            f"no training document is left: {progress.splits['validation'].documents} held out "
            f"for validation, {progress.empty} empty, {progress.duplicates} duplicates, "
            f"{sum(progress.skipped.values())} not readable; add text, or lower validation_fraction"
        )
    entries = vocab_size(tokenizer)
    metadata = DatasetMetadata(
        folder=work.data,
        max_seq_len=options.max_seq_len,
        tokenizer=TokenizerRecord(
            file=TOKENIZER_FILE,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            vocab_size=entries,
            padded_vocab_size=padded_vocab_size(entries),
            special_token_ids=special_token_ids(tokenizer),
        ),
        options=recorded,
        sources=inputs.records(progress.files, progress.documents),
        splits={
            name: SplitRecord(
                documents=split.documents,
                sequences=split.sequences,
                tokens=split.tokens,
                truncated_documents=split.truncated_documents,
                shards=split.shards,
            )
            for name, split in progress.splits.items()
            if split.documents
        },
        dropped_duplicates=progress.duplicates,
        dropped_empty=progress.empty,
        skipped=progress.skipped,
    )
    write_synced(work.data / METADATA_FILE, metadata.to_json().encode())
    return metadata


def _trained(
    inputs: Inputs,
    recorded: dict[str, Any],
    model: str,
    execution: Execution,
    say: Callable[[str], None],
) -> Tokenizer:
    entries = recorded["vocab_size"]
    with ByteProgress("sampling for the tokenizer", inputs.bytes) as progress:
        sample = execution.sample(inputs, TOKENIZER_SAMPLE_BYTES, progress)
    if not sample.is_whole:
        say(
            f"training the tokenizer on {sample.bytes / 1e6:,.0f} of {sample.read_bytes / 1e6:,.0f}"
            f" MB of text: {len(sample):,} documents, drawn by digest"
        )
    if entries == _SCALED:
        entries = scaled_vocab_size(sample.read_bytes)
        say(
            f"vocabulary: at most {entries:,} entries for {sample.read_bytes / 1e6:,.1f} MB of "
            "text; --vocab-size sets another number"
        )
    return while_ticking(
        "training the tokenizer",
        lambda: train_tokenizer(sample, int(entries), recorded["lowercase"], model),
    )


def scaled_vocab_size(text_bytes: int) -> int:
    """A vocabulary size that suits a text: the square root of its bytes, to the nearest 64.

    At least 512, enough to spell with, and at most the 30,522 of bert-base-uncased, for 1 GB.
    """
    entries = round(text_bytes**0.5 / 64) * 64
    return min(max(entries, 512), _LARGEST_SCALED)


def _report(
    metadata: DatasetMetadata,
    inputs: Inputs,
    options: PrepareOptions,
    other: Tokenizer | None,
    execution: Execution,
    say: Callable[[str], None],
) -> None:
    with ByteProgress("sampling for the report", inputs.bytes) as progress:
        sample = execution.sample(inputs, REPORT_SAMPLE_BYTES, progress)
    folder = buckets.local_copy(metadata.folder)
    text = text_report(folder, list(sample), other, _tokenizer_name(options.compare_with))
    path = metadata.folder / REPORT_FILE
    if isinstance(path, BucketPath):
        path.write_bytes(text.encode())
    else:
        write_atomically(path, text)
    say(f"\n{text}\nreport: {path}")


def _tokenizer_name(path: str | None) -> str:
    """The folder's name, where the file's own says nothing."""
    absolute = Path(os.path.abspath(path or ""))
    return absolute.parent.name if absolute.name in _FILES_OF_A_TOKENIZER else absolute.name

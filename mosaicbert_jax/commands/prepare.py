"""Makes a training set, and a tokenizer, from text."""

import argparse

from mosaicbert_jax.errors import UserError

HELP = "make a training set, and a tokenizer, from text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="INPUT",
        help="files (.txt .jsonl .json .csv .tsv .parquet, also with .gz or .zst), folders, quoted "
        "globs, any of these in a bucket (gs://, s3://), tfds:NAME, or 'embedded' for the corpus "
        "that comes as packages",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the data set's folder")
    parser.add_argument("--field", default="text", help="key or column that holds the text")
    parser.add_argument("--max-seq-len", type=int, default=128, help="tokens, [CLS] and [SEP] too")
    parser.add_argument(
        "--validation-fraction", type=float, default=0.05, help="share of documents held out"
    )
    parser.add_argument("--tokenizer", help="vocab.txt, tokenizer.json or a Hugging Face folder")
    parser.add_argument(
        "--vocab-size",
        type=int,
        help="entries of a tokenizer trained here; if not set they grow with the text: the root of "
        "its bytes, from 512 to 30,522",
    )
    parser.add_argument(
        "--tokenizer-model",
        choices=["wordpiece", "bpe"],
        default="wordpiece",
        help="of a tokenizer trained here: BERT's, or byte-level BPE, which keeps case and knows "
        "all text, whatever its script",
    )
    parser.add_argument(
        "--special-tokens",
        nargs="+",
        default=[],
        metavar="ROLE=ENTRY",
        help="entries of --tokenizer that are its pad, unk, cls, sep or mask, where they have none "
        "of the names of BERT, RoBERTa and Gemma",
    )
    parser.add_argument("--cased", action="store_true", help="train a tokenizer that keeps case")
    parser.add_argument(
        "--long-documents",
        choices=["truncate", "split"],
        default="truncate",
        help="keep a document's first sequence, or cut all of it into sequences",
    )
    parser.add_argument(
        "--keep-duplicates", action="store_true", help="keep documents that occur more than once"
    )
    parser.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="at input that can't be read: say where and stop, or skip and count it",
    )
    parser.add_argument("--workers", type=int, help="processes; the default is one a core")
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="of a Ray cluster that does the work, with the same bytes: HOST:PORT of its head, or "
        "auto, on one of its nodes, all of which see inputs and output (needs the extra `cluster`)",
    )
    parser.add_argument(
        "--report", action="store_true", help="describe text and tokenizer; kept as report.md"
    )
    parser.add_argument(
        "--compare-with", metavar="TOKENIZER", help="a second tokenizer for the report"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare

    if arguments.cased and arguments.tokenizer:
        raise UserError("--cased is for a tokenizer trained here; --tokenizer decides by itself")
    if arguments.special_tokens and not arguments.tokenizer:
        raise UserError("--special-tokens are entries of a --tokenizer; give one")
    if arguments.tokenizer_model != "wordpiece" and arguments.tokenizer:
        raise UserError("--tokenizer-model is for a tokenizer trained here, without --tokenizer")
    special_tokens = []
    for word in arguments.special_tokens:
        role, equals, entry = word.partition("=")
        if not (equals and entry):
            raise UserError(
                f"--special-tokens {word!r} is not of the form ROLE=ENTRY, as in mask=<m>"
            )
        special_tokens.append((role, entry))
    prepare(
        PrepareOptions(
            inputs=tuple(arguments.input),
            output=arguments.output,
            field=arguments.field,
            max_seq_len=arguments.max_seq_len,
            validation_fraction=arguments.validation_fraction,
            tokenizer=arguments.tokenizer,
            vocab_size=arguments.vocab_size,
            lowercase=False if arguments.cased else None,
            tokenizer_model=arguments.tokenizer_model,
            special_tokens=tuple(special_tokens),
            long_documents=arguments.long_documents,
            deduplicate=not arguments.keep_duplicates,
            on_error=arguments.on_error,
            workers=arguments.workers,
            cluster=arguments.cluster,
            report=arguments.report,
            compare_with=arguments.compare_with,
        )
    )

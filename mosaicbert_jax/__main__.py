"""The commands: python -m mosaicbert_jax COMMAND. What each needs is imported when it is called."""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence

from mosaicbert_jax.errors import UserError, explained


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; see `explained` for what ends it otherwise."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "overrides"):
        arguments.overrides, rest = rest, []
    # argparse gives up on texts that stand behind an option, as in: fill-mask DIR --top 3 TEXT.
    if rest and (not hasattr(arguments, "text") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.text += rest
    with explained("interrupted"):
        arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mosaicbert_jax")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="make a training set, and a tokenizer, from text")
    prepare.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="INPUT",
        help="files (.txt .jsonl .json .csv .tsv .parquet, also with .gz or .zst), folders, quoted "
        "globs, tfds:NAME, or 'embedded' for the corpus that comes as packages",
    )
    prepare.add_argument("--output", required=True, metavar="DIR", help="the data set's folder")
    prepare.add_argument("--field", default="text", help="key or column that holds the text")
    prepare.add_argument("--max-seq-len", type=int, default=128, help="tokens, [CLS] and [SEP] too")
    prepare.add_argument(
        "--validation-fraction", type=float, default=0.05, help="share of documents held out"
    )
    prepare.add_argument("--tokenizer", help="vocab.txt, tokenizer.json or a Hugging Face folder")
    prepare.add_argument("--vocab-size", type=int, help="entries of a tokenizer trained here")
    prepare.add_argument("--cased", action="store_true", help="train a tokenizer that keeps case")
    prepare.add_argument(
        "--long-documents",
        choices=["truncate", "split"],
        default="truncate",
        help="keep a document's first sequence, or cut all of it into sequences",
    )
    prepare.add_argument(
        "--keep-duplicates", action="store_true", help="keep documents that occur more than once"
    )
    prepare.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="at input that can't be read: say where and stop, or leave it out and count it",
    )
    prepare.add_argument("--workers", type=int, help="processes; the default is one a core")
    prepare.add_argument(
        "--report", action="store_true", help="describe text and tokenizer; kept as report.md"
    )
    prepare.add_argument(
        "--compare-with", metavar="TOKENIZER", help="a second tokenizer for the report"
    )
    prepare.set_defaults(command=_prepare)

    fill_mask = commands.add_parser("fill-mask", help="guess what stands behind [MASK]")
    fill_mask.add_argument("workdir", type=pathlib.Path, help="of a run of train.py")
    fill_mask.add_argument("text", nargs="*", help="with [MASK]; none: lines of standard input")
    fill_mask.add_argument("--top", type=int, default=5, help="guesses a mask")
    fill_mask.set_defaults(command=_fill_mask)

    predict = commands.add_parser("predict", help="label texts with a finetuned model")
    predict.add_argument(
        "model", type=pathlib.Path, help="workdir of a finetuning run, or a Hugging Face folder"
    )
    predict.add_argument(
        "file", type=pathlib.Path, nargs="?",
        help=".csv, .tsv or .jsonl with the columns of the training file; or a text a line (two "
        "with a tab between them, for pairs), as from standard input, which is read without a file",
    )  # fmt: skip
    predict.set_defaults(command=_predict)

    convert = commands.add_parser("convert", help="to PyTorch and Hugging Face, and from there")
    convert.add_argument(
        "source", type=pathlib.Path, metavar="WORKDIR_OR_FOLDER",
        help="a run, which becomes a Hugging Face folder; or such a folder, which becomes a "
        "workdir for --config.init_from",
    )  # fmt: skip
    convert.add_argument(
        "--output", type=pathlib.Path, required=True, metavar="DIR", help="is made"
    )
    convert.add_argument("--step", type=int, help="of a run's checkpoint; the default is its last")
    convert.add_argument(
        "--tokenizer", type=pathlib.Path, help="for a Hugging Face folder that has none"
    )
    convert.add_argument(
        "--renew-head", action="store_true", help="of a Hugging Face folder: take the encoder alone"
    )
    convert.set_defaults(command=_convert)

    plan = commands.add_parser(
        "plan", help="memory, time and price of a pretraining run, predicted without a GPU"
    )
    plan.add_argument(
        "--config", required=True, metavar="FILE",
        help="as for train.py; override a value with --config.KEY=VALUE",
    )  # fmt: skip
    plan.add_argument(
        "--gpu", required=True,
        help="a100-40gb, a100-80gb, h100, h200, or, with --price, a10, l4 or b200",
    )  # fmt: skip
    plan.add_argument("--gpus", type=int, default=8, help="of a node; the default is 8")
    plan.add_argument(
        "--nodes", type=int, nargs="+", default=[1],
        help="how many; several give a table, the step compiled for the first",
    )  # fmt: skip
    plan.add_argument("--price", type=float, help="of a GPU-hour, dollars; the default is printed")
    plan.add_argument("--budget", type=float, help="dollars; tells how many tokens they buy")
    plan.add_argument(
        "--tokens-per-sequence", type=float,
        help="on average; the default is 128, to which the recipe cuts its documents",
    )  # fmt: skip
    plan.add_argument(
        "--inside", type=float, default=600, help="GB/s of a GPU to its node; the default is 600"
    )
    plan.add_argument(
        "--between", type=float, default=200, help="GB/s of a node to others; the default is 200"
    )
    plan.add_argument(
        "--memory-fraction", type=float, default=0.75,
        help="of a GPU's memory that JAX takes, as XLA_PYTHON_CLIENT_MEM_FRACTION; 0.75 by default",
    )  # fmt: skip
    plan.add_argument("--json", action="store_true", help="print everything as JSON")
    plan.add_argument("--picture", metavar="FILE.png", help="draw hours and price over the nodes")
    plan.set_defaults(command=_plan, overrides=[])

    report = commands.add_parser("report", help="curves and figures of runs, as one HTML page")
    report.add_argument(
        "workdirs", type=pathlib.Path, nargs="+", metavar="WORKDIR",
        help="of train.py; also of a run that is going on, or of a GLUE suite. Several runs share "
        "their charts",
    )  # fmt: skip
    report.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE.html")
    report.set_defaults(command=_report)
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    from mosaicbert_jax.data.preparation import PrepareOptions, prepare

    if arguments.cased and arguments.tokenizer:
        raise UserError("--cased is for a tokenizer trained here; --tokenizer decides by itself")
    prepare(
        PrepareOptions(
            inputs=tuple(arguments.input),
            output=arguments.output,
            field=arguments.field,
            max_seq_len=arguments.max_seq_len,
            validation_fraction=arguments.validation_fraction,
            tokenizer=arguments.tokenizer,
            vocab_size=arguments.vocab_size,
            lowercase=not arguments.cased,
            long_documents=arguments.long_documents,
            deduplicate=not arguments.keep_duplicates,
            on_error=arguments.on_error,
            workers=arguments.workers,
            report=arguments.report,
            compare_with=arguments.compare_with,
        )
    )


def _fill_mask(arguments: argparse.Namespace) -> None:
    from mosaicbert_jax.prediction import MASK, FillMask

    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: ask for at least one guess")
    fill = FillMask.from_workdir(arguments.workdir)
    for text in arguments.text or _lines():
        print(text)
        for index, guesses in enumerate(fill(text, top=arguments.top)):
            if text.count(MASK) > 1:
                print(f"  mask {index + 1}")
            for guess in guesses:
                print(f"  {guess.probability:6.1%}  {guess.token}", flush=True)


def _predict(arguments: argparse.Namespace) -> None:
    from mosaicbert_jax.finetuning.classifier import Classifier
    from mosaicbert_jax.finetuning.examples import examples_to_label, examples_to_tag
    from mosaicbert_jax.finetuning.target import TOKEN_CLASSIFICATION

    classifier = Classifier(arguments.model)
    if classifier.target.kind == TOKEN_CLASSIFICATION:
        for examples in examples_to_tag(arguments.file, classifier.columns):
            for example, labels in zip(examples, classifier.tag(examples), strict=True):
                words = zip(example.words, labels, strict=False)  # a long text's end has none
                print(*(f"{word}\t{label}" for word, label in words), "", sep="\n", flush=True)
        return
    for examples in examples_to_label(arguments.file, classifier.columns):
        for example, found in zip(examples, classifier(examples), strict=True):
            text = " ".join(f"{example.first} {example.second or ''}".split())
            probability = [] if found.probability is None else [f"{found.probability:.4f}"]
            print(*[found.label, *probability, text], sep="\t", flush=True)


def _convert(arguments: argparse.Namespace) -> None:
    from mosaicbert_jax.conversion import export_run, import_folder
    from mosaicbert_jax.training.workdir import CHECKPOINTS

    source, output = arguments.source, arguments.output
    if (source / CHECKPOINTS).is_dir():
        if arguments.tokenizer or arguments.renew_head:
            raise UserError(
                f"{source} is a run, which has its tokenizer and its head: --tokenizer and "
                "--renew-head are for Hugging Face folders"
            )
        export_run(source, output, arguments.step)
        print(f"{output} is a Hugging Face folder; its README.md says how to load it.")
        return
    if arguments.step is not None:
        raise UserError(f"--step is for runs, and {source} has no checkpoints")
    renew = ("head",) if arguments.renew_head else ()
    import_folder(source, output, tokenizer=arguments.tokenizer, renew=renew)
    print(f"{output} is a workdir; train from it with --config.init_from={output}")


def _plan(arguments: argparse.Namespace) -> None:
    import json

    from mosaicbert_jax.planning.collectives import Links
    from mosaicbert_jax.planning.command import PlanOptions, plan
    from mosaicbert_jax.planning.plan_report import text
    from mosaicbert_jax.training.command import read

    words = [f"--config={arguments.config}", *arguments.overrides]
    config, _, rest = read(["plan", *words])
    if rest:
        raise UserError(f"{' '.join(rest)} is not understood")
    made = plan(
        config,
        PlanOptions(
            gpu=arguments.gpu,
            gpus=arguments.gpus,
            nodes=tuple(arguments.nodes),
            price=arguments.price,
            budget=arguments.budget,
            tokens_per_sequence=arguments.tokens_per_sequence,
            links=Links(arguments.inside * 1e9, arguments.between * 1e9),
            memory_fraction=arguments.memory_fraction,
        ),
    )
    print(json.dumps(made.to_dict(), indent=2) if arguments.json else text(made), end="")
    if arguments.picture:
        from mosaicbert_jax.planning.picture import draw

        draw(made, arguments.picture)


def _report(arguments: argparse.Namespace) -> None:
    from mosaicbert_jax.reporting.command import report

    print(report(arguments.workdirs, arguments.output))


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        print("Type lines with [MASK]; Ctrl-D ends.", file=sys.stderr)
    return (line.strip() for line in sys.stdin if line.strip())


if __name__ == "__main__":
    main()

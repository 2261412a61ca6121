"""Parts of speech by a WordPiece and by a byte-level BPE model, with and without the space before.

    pip install dante-corpora==2.0.5 --no-deps
    python -m experiments.tagging --work DIR

Porttinari (package dante-corpora, MIT): 8,420 sentences of Portuguese newspapers with a part of
speech for each word. Per tokenizer, a small ModernBERT is pretrained on the text of the sentences
and finetuned on the tags. BPE is finetuned twice: as this package does it, with the space that
stands before a word in text, and without, as words are tokenized one by one elsewhere. A run that
has its results.json is not repeated. Writes experiments/results/tagging.md.
"""

import argparse
import datetime
import importlib.util
import json
import pathlib
import platform
import statistics
import subprocess
import sys
from unittest import mock

import jax

from benchmarks.preparation import processor
from mosaicbert_jax.commands.train import main as train

SEEDS = (19, 20, 21)
STEPS, VOCABULARY = 3000, 4096
ARMS = {
    "WordPiece": ("wordpiece", True),
    "BPE, with the space before a word": ("bpe", True),
    "BPE, each word alone": ("bpe", False),
}


def sentences() -> list[tuple[list[str], list[str]]]:
    """Words and their parts of speech; contractions are given by their parts."""
    place = importlib.util.find_spec("dante")
    if place is None or place.origin is None:
        sys.exit("error: pip install dante-corpora==2.0.5 --no-deps")
    path = pathlib.Path(place.origin).parent / "data" / "porttinari" / "annotated.conllu"
    found: list[tuple[list[str], list[str]]] = [([], [])]
    for line in path.read_text(encoding="utf-8").splitlines():
        columns = line.split("\t")
        if not line.strip():
            found.append(([], []))
        elif columns[0].isdigit():
            found[-1][0].append(columns[1])
            found[-1][1].append(columns[3])
    return [sentence for sentence in found if sentence[0]]


def pretrained(work: pathlib.Path, model: str) -> pathlib.Path:
    """A run of STEPS steps on the text, with a tokenizer of that model."""
    data, folder = work / f"{model}-data", work / model
    subprocess.run(
        [
            sys.executable, "-m", "mosaicbert_jax", "prepare", "--input", work / "text.txt",
            "--output", data, "--tokenizer-model", model, "--vocab-size", str(VOCABULARY),
            "--cased",
        ],
        check=True,
    )  # fmt: skip
    subprocess.run(
        [
            sys.executable, "train.py", "--config=configs/quickstart.py:modernbert",
            f"--workdir={folder}", f"--config.data.path={data}",
            f"--config.train.duration={STEPS}ba", f"--config.eval.every={STEPS}ba",
        ],
        check=True,
    )  # fmt: skip
    return folder


def accuracy(work: pathlib.Path, arm: str, origin: pathlib.Path, seed: int) -> float:
    """Of the words of the held-out tenth after the last epoch."""
    _, with_space = ARMS[arm]
    folder = work / arm.replace(" ", "-").replace(",", "") / str(seed)
    if not (folder / "results.json").exists():
        words = [
            "train.py", "--config=configs/finetune.py", f"--workdir={folder}",
            f"--config.init_from={origin}", f"--config.data.path={work / 'tags.jsonl'}",
            "--config.task=token_classification", "--config.data.text=words",
            "--config.data.label=tags", "--config.data.max_seq_len=128", f"--config.seed={seed}",
        ]  # fmt: skip
        one_by_one = mock.patch(
            "mosaicbert_jax.finetuning.encoded.words_in_text",
            lambda tokenizer, words: list(words),
        )
        with mock.patch.object(sys, "argv", words):
            if with_space:
                train()
            else:
                with one_by_one:
                    train()
    return json.loads((folder / "results.json").read_text())["scores"]["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    tagged = sentences()
    (work / "text.txt").write_text("".join(f"{' '.join(words)}\n" for words, _ in tagged))
    with (work / "tags.jsonl").open("w") as file:
        for words, tags in tagged:
            file.write(json.dumps({"words": words, "tags": tags}) + "\n")
    origins = {model: pretrained(work, model) for model in ("wordpiece", "bpe")}
    found = {
        arm: [accuracy(work, arm, origins[model], seed) for seed in SEEDS]
        for arm, (model, _) in ARMS.items()
    }
    lines = [
        "# Parts of speech: WordPiece and byte-level BPE\n",
        f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}, jax "
        f"{jax.__version__}",
        "`python -m experiments.tagging --work DIR`\n",
        f"Porttinari: {len(tagged):,} sentences of Portuguese newspapers, "
        f"{sum(len(words) for words, _ in tagged):,} words, "
        f"{len({tag for _, tags in tagged for tag in tags})} parts of speech, a tenth held out. A "
        f"ModernBERT of 2 layers of 128, {STEPS:,} steps of 512 tokens of pretraining on the same "
        f"text with a cased vocabulary of {VOCABULARY:,}, then configs/finetune.py, 3 epochs. Mean "
        f"of {len(SEEDS)} seeds ± standard deviation.\n",
        "| tokenizer | held-out accuracy |",
        "| --- | --- |",
    ]
    for arm, scores in found.items():
        lines.append(f"| {arm} | {statistics.fmean(scores):.4f} ± {statistics.stdev(scores):.4f} |")
    pathlib.Path("experiments/results/tagging.md").write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()

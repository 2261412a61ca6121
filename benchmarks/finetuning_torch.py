"""The recipe of configs/finetune.py in PyTorch and transformers, for benchmarks/finetuning.py.

Written from the recipe, not from this project's training code; what it shares with it is the
data: the same examples as the same token ids in the same batches, each row one example with
padding.
"""

import itertools
import math

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
from mosaicbert_jax.finetuning.target import REGRESSION


def _inputs(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.from_numpy(arrays["tokens_BL"]).long(),
        "attention_mask": torch.from_numpy(arrays["segment_ids_BL"] > 0).long(),
        "token_type_ids": torch.from_numpy(arrays["token_type_ids_BL"]).long(),
    }


def _logits(model: torch.nn.Module, examples: EncodedExamples, length: int) -> np.ndarray:
    """float32[S, C] in the order of the examples, without dropout."""
    model.eval()
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for arrays, indices_S in evaluation_batches(examples, size=64, row_length=length, shards=1):
            logits = model(**_inputs(padded(examples, arrays, None))).logits.numpy()
            found |= zip(indices_S.tolist(), logits, strict=True)
    return np.stack([found[index] for index in range(len(examples))])


def finetune_in_torch(run: Finetuning, epochs: int) -> dict[str, float]:
    """Trains BERT from a Hugging Face folder on a run's examples; returns its held-out scores.

    AdamW whose decay follows the schedule's shape, warmup over 6 % and then linear to 0, N(0, 0.02)
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
    )
    total = epochs * len(run.train)

    def fraction(step: int) -> float:
        share = step * batch_size / total
        return share / 0.06 if share < 0.06 else max(0.0, (1 - share) / 0.94)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction)
    steps = math.ceil(total / batch_size)
    for batch in tqdm(itertools.islice(run.batches(Position()), steps), total=steps, desc="torch"):
        arrays = padded(run.train, batch.arrays, None)
        logits, labels = model(**_inputs(arrays)).logits, torch.from_numpy(arrays["labels_S"])
        if run.target.kind == REGRESSION:
            loss = torch.nn.functional.mse_loss(logits[:, 0], labels)
        else:
            loss = torch.nn.functional.cross_entropy(logits, labels.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    (dev,) = run.dev.values()
    logits_SC = _logits(model, dev, config.data.max_seq_len)
    return score(logits_SC, dev.labels_S, run.target, run.metrics)

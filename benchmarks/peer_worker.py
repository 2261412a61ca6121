"""One of the models of benchmarks/peers.py, in a process of its own that is told when to compute.

A command is a line of standard input, `train full`, `infer real` and so on, or `product plain` for
a matrix product; the answer is a line of JSON with seconds, real tokens (of the product FLOPs),
slots and the most memory that the process has had.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.masking import predictions_per_row
from mosaicbert_jax.data.pipeline import batches

ROWS, LENGTH = 8, 128
PACKED_LENGTH = 512  # of the rows that texts are packed into here, as in configs/mosaicbert_base.py
PRODUCT = (1024, 768, 3072)  # (M, K, N) of the matrix product, and how many of them are timed:
_PRODUCTS = 20
OURS, OUR_BERT, HF_BERT, MODERNBERT, EXPORTED = PEERS = (
    "MosaicBERT-Base, here",
    "BERT-Base, here",
    "Hugging Face BERT-Base",
    "Hugging Face ModernBERT-base",
    "MosaicBERT-Base in PyTorch",
)
CASES = (
    ("train", "full"),
    ("train", "real"),
    ("infer", "full"),
    ("infer", "real"),
    ("product", "plain"),
)
_BATCHES = 4  # made before the clock starts, and taken in turn
_MASKING = {OURS: 0.3, OUR_BERT: 0.15, HF_BERT: 0.15, MODERNBERT: 0.3, EXPORTED: 0.3}

# A function that computes a batch, and the batch's real tokens and slots.
Work = tuple[Callable[[], None], int, int]


def main() -> None:
    peer, data, folder, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    if peer in (OURS, OUR_BERT):
        make = _jax_work(peer, pathlib.Path(data))
    else:
        make = _torch_work(peer, pathlib.Path(data), pathlib.Path(folder), int(threads))
    work = {(task, kind): itertools.cycle(make(task, kind)) for task, kind in CASES}
    for line in sys.stdin:
        compute, tokens, slots = next(work[tuple(line.split())])
        begun = time.perf_counter()
        compute()
        seconds = time.perf_counter() - begun
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {"seconds": seconds, "tokens": tokens, "slots": slots, "memory": memory}
        print(json.dumps(answer), file=answers)


def _batches(
    peer: str, task: str, kind: str, data: pathlib.Path
) -> Iterator[tuple[dict, int, int]]:
    """Masked batches of ROWS rows, with their real tokens and slots.

    The full ones have random tokens everywhere; the real ones are texts of the corpus, packed into
    as many slots for ours and padded for the others.
    """
    rate = _MASKING[peer] if task == "train" else 0.15
    if kind == "full":
        for seed in range(_BATCHES):
            yield _full_batch(seed, rate), ROWS * LENGTH, ROWS * LENGTH
        return
    is_packed = peer in (OURS, OUR_BERT)
    stream = batches(
        TokenDataset(data),
        row_length=PACKED_LENGTH if is_packed else LENGTH,
        rows_per_batch=ROWS * LENGTH // PACKED_LENGTH if is_packed else ROWS,
        seed=0,
        masking_rate=rate,
        packing=is_packed,
    )
    with contextlib.closing(stream):
        for batch in itertools.islice(stream, _BATCHES):
            yield batch.arrays, batch.tokens, batch.slots


def _full_batch(seed: int, rate: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    slots = predictions_per_row(LENGTH, rate)
    positions_BP = np.zeros((ROWS, slots), np.int32)
    weights_BP = np.zeros((ROWS, slots), np.float32)
    for row in range(ROWS):
        columns = np.flatnonzero(rng.random(LENGTH) < rate)[:slots]
        positions_BP[row, : len(columns)], weights_BP[row, : len(columns)] = columns, 1
    return {
        "tokens_BL": rng.integers(1000, 30_000, (ROWS, LENGTH), np.int32),
        "segment_ids_BL": np.ones((ROWS, LENGTH), np.int32),
        "positions_BP": positions_BP,
        "labels_BP": rng.integers(1000, 30_000, (ROWS, slots), np.int32),
        "weights_BP": weights_BP,
    }


def _product_flops() -> int:
    return 2 * PRODUCT[0] * PRODUCT[1] * PRODUCT[2] * _PRODUCTS


def _jax_work(peer: str, data: pathlib.Path) -> Callable[[str, str], list[Work]]:
    """A model of this project; (task, kind of batches) to work."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from configs import bert_base, mosaicbert_base
    from mosaicbert_jax import BertConfig, BertForMaskedLM
    from mosaicbert_jax.launch import keep_freed_memory
    from mosaicbert_jax.training.optimizer import optimizer_of
    from mosaicbert_jax.training.step import TrainState, train_step

    keep_freed_memory()  # as train.py does on a CPU
    recipe = (mosaicbert_base if peer == OURS else bert_base).get_config()
    fields = dict(recipe.model) | {"dtype": "float32"}
    fields["vocab_size"] = fields["vocab_size"] or BertConfig().vocab_size
    config = BertConfig.from_fields(fields)
    optimizer = optimizer_of(recipe.optimizer)
    model = nnx.jit(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0)))()
    graph, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    del model
    states = [TrainState(params, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))]
    step = jax.jit(
        functools.partial(train_step, graph=graph, optimizer=optimizer),
        donate_argnums=0,
    )

    @jax.jit
    def logits(params, batch):
        model = nnx.merge(graph, params)
        return model(
            batch["tokens_BL"], batch["segment_ids_BL"], positions_BP=batch["positions_BP"]
        )

    def train(batch: dict[str, np.ndarray]) -> None:
        states[0], metrics = step(states[0], batch, jnp.float32(1e-4), jax.random.key(0))
        jax.block_until_ready((states[0], metrics))

    def infer(batch: dict[str, np.ndarray]) -> None:
        jax.block_until_ready(logits(states[0].params, batch))

    multiply = jax.jit(jnp.matmul)
    left, right = (jnp.ones(shape, jnp.float32) for shape in (PRODUCT[:2], PRODUCT[1:]))

    def products() -> None:
        for _ in range(_PRODUCTS):
            jax.block_until_ready(multiply(left, right))

    def work(task: str, kind: str) -> list[Work]:
        if task == "product":
            return [(products, _product_flops(), 0)]
        compute = train if task == "train" else infer
        return [
            (functools.partial(compute, batch), tokens, slots)
            for batch, tokens, slots in _batches(peer, task, kind, data)
        ]

    return work


def _torch_work(peer: str, data: pathlib.Path, folder: pathlib.Path, threads: int):
    """A model of transformers, or ours as it leaves; (task, kind of batches) to work.

    Args:
      folder: an exported MosaicBERT-Base.
    """
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    if peer == EXPORTED:
        model = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    elif peer == HF_BERT:
        model = transformers.BertForMaskedLM(transformers.BertConfig(attn_implementation="sdpa"))
    else:
        config = transformers.ModernBertConfig(attn_implementation="sdpa")
        model = transformers.ModernBertForMaskedLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.02, fused=True
    )

    def train(inputs: dict[str, torch.Tensor]) -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        model(**inputs).loss.backward()
        optimizer.step()

    def infer(inputs: dict[str, torch.Tensor]) -> None:
        model.eval()
        with torch.inference_mode():
            model(**{name: array for name, array in inputs.items() if name != "labels"})

    left, right = torch.ones(PRODUCT[:2]), torch.ones(PRODUCT[1:])

    def products() -> None:
        for _ in range(_PRODUCTS):
            torch.matmul(left, right)

    def work(task: str, kind: str) -> list[Work]:
        if task == "product":
            return [(products, _product_flops(), 0)]
        compute, found = (train if task == "train" else infer), []
        for batch, tokens, _ in _batches(peer, task, kind, data):
            arrays = padded_to_longest(batch)
            inputs = {name: torch.from_numpy(array).long() for name, array in arrays.items()}
            found.append((functools.partial(compute, inputs), tokens, inputs["labels"].numel()))
        return found

    return work


def padded_to_longest(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch of a sequence a row as transformers takes it, no longer than its longest."""
    length = int((batch["segment_ids_BL"] > 0).sum(axis=1).max())
    labels_BL = np.full(batch["tokens_BL"].shape, -100, np.int64)
    rows_U, slots_U = np.nonzero(batch["weights_BP"])
    labels_BL[rows_U, batch["positions_BP"][rows_U, slots_U]] = batch["labels_BP"][rows_U, slots_U]
    return {
        "input_ids": batch["tokens_BL"][:, :length],
        "attention_mask": batch["segment_ids_BL"][:, :length] > 0,
        "labels": labels_BL[:, :length],
    }


if __name__ == "__main__":
    main()

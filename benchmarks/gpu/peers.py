"""Training steps of Hugging Face's BERT-Base and ModernBERT-base in PyTorch on the same GPU.

As their users run them: bfloat16 autocast, torch.compile, the fused AdamW, rows of one text padded
to the longest; real lengths and full rows of 128 tokens, 30% predicted. If flash_attn is there,
ModernBERT also runs without padding. Real tokens a second count no padding.
"""

import importlib.util
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.gpu.tables import attempt, header, row

_TINY = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def main(rehearse: bool) -> None:
    print(__doc__)
    header("model", "rows", "attention", "ms", "real tokens/s")
    if not all(importlib.util.find_spec(package) for package in ("torch", "transformers")):
        row("not to be had: torch and transformers are not installed", "", "", "", "")
        return
    for model, attention in _models():
        for kind in ("real lengths", "full"):
            attempt(
                model,
                lambda m=model, a=attention, k=kind: [k, a, *_measure(m, a, k, rehearse)],
                ours=False,
            )


def _models() -> Iterator[tuple[str, str]]:
    yield "Bert", "sdpa"
    yield "ModernBert", "sdpa"
    if importlib.util.find_spec("flash_attn"):
        yield "ModernBert", "flash_attention_2"


def _measure(name: str, attention: str, kind: str, rehearse: bool) -> tuple[str, str]:
    import torch
    import transformers

    device = "cpu" if rehearse else "cuda"
    rows, length, steps = (2, 16, 1) if rehearse else (256, 128, 20)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.5, 0.6, rows), 2, length).astype(int)
    lengths[0] = length
    if kind == "full":
        lengths[:] = length
    mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
    tokens = torch.randint(5, 500, (rows, length)) * mask
    labels = torch.where((torch.rand(rows, length) < 0.3) & mask, tokens, -100)
    batch = {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}
    batch = {key: value.to(device) for key, value in batch.items()}
    torch.manual_seed(0)
    fields = {"attn_implementation": attention, **(_TINY if rehearse else {})}
    config = getattr(transformers, f"{name}Config")(**fields)
    model = getattr(transformers, f"{name}ForMaskedLM")(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=not rehearse)
    run = model if rehearse else torch.compile(model)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = run(**batch).loss
        loss.backward()
        optimizer.step()

    def wait():
        if not rehearse:
            torch.cuda.synchronize()

    for _ in range(1 if rehearse else 6):
        step()
    wait()
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    seconds = (time.perf_counter() - begun) / steps
    return f"{1e3 * seconds:.1f}", f"{int(lengths.sum()) / seconds:,.0f}"

"""What each of MosaicBERT's changes is worth, and texts longer than those trained on.

    python -m experiments.ablation --config=experiments/configs/ablation.py \\
        --workdir=runs/ablation --config.data.path=DIR [--output=experiments/results/ablation]

See experiments/configs/ablation.py. For the longer texts the embedded corpus is prepared again with
DIR's tokenizer, in sequences of up to 256, 512 and 1,024 tokens, of which only what DIR holds out
is used; DIR must be the embedded corpus too. Writes OUTPUT.md and OUTPUT.png as it goes.
"""

import dataclasses
import datetime
import functools
import pathlib
import platform
import statistics
import sys
from typing import Any

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from benchmarks.preparation import processor
from experiments.comparison import (
    Job,
    StepSeconds,
    by_seed,
    jobs,
    mean_and_range,
    prepare,
    read_command,
    run,
    step_seconds,
    variant_config,
)
from experiments.configs.ablation import NUMERICS, OFF, WHOLE_LAST_LAYER
from mosaicbert_jax.errors import explained
from mosaicbert_jax.modeling.columns import gather_columns
from mosaicbert_jax.modeling.loss import masked_lm_loss
from mosaicbert_jax.preparation.preparation import PrepareOptions
from mosaicbert_jax.preparation.preparation import prepare as prepare_text
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.storage import checkpoint_files, workdir
from mosaicbert_jax.training.step import MASKED_LM

Found = dict[Job, dict[str, Any]]
LENGTHS = (128, 256, 512, 1024)
OF_LENGTHS = ("nothing", "ALiBi")  # the variants that are tried on longer texts


def prepare_variant(variant: str, config: ConfigDict, folder: pathlib.Path) -> Pretraining:
    """A run as its config says; or with all of the last layer, and then the same loss."""
    made = prepare(variant, config, folder)
    if variant == WHOLE_LAST_LAYER:
        objective = dataclasses.replace(MASKED_LM, sums=whole_last_layer_sums)
        made = dataclasses.replace(made, objective=objective)
    return made


def whole_last_layer_sums(model, batch, dropout_key):
    """`MASKED_LM`'s, with the hidden states of all tokens computed and gathered then."""
    hidden_BLE = model.bert(batch["tokens_BL"], batch["segment_ids_BL"], dropout_key=dropout_key)
    return masked_lm_loss(
        model.head.transform(gather_columns(hidden_BLE, batch["positions_BP"])),
        model.bert.embeddings.word.embedding[...],
        model.head.bias[...],
        batch["labels_BP"],
        batch["weights_BP"],
    )


def numerics_jobs(config: ConfigDict) -> list[Job]:
    """The runs that are compared at equal steps."""
    steps = f"{config.numerics_steps}ba"
    return [Job(name, steps, seed) for seed in config.seeds for name in config.numerics]


def at_lengths(config: ConfigDict, cache: pathlib.Path, job: Job, folder: pathlib.Path) -> dict:
    """Held-out losses of a finished run's model on texts cut at each of LENGTHS, by length."""
    if job.variant not in OF_LENGTHS:
        return {}
    found = {}
    for length in LENGTHS:
        one = variant_config(config, job).unlock()
        one.data.path = str(cache / f"text-{length}")
        # The same slots a batch; and sequences of `length` in rows of `length`.
        one.data.row_length = length
        one.train.batch_tokens = one.train.microbatch_tokens = 4096
        one.train.duration = "1ba"
        trained = prepare(job.variant, one.lock(), folder)
        with jax.set_mesh(trained.mesh):
            params = checkpoint_files.read_params(folder, trained.abstract_state().params)
            found[str(length)] = trained.evaluate(params).loss
    return {"at_lengths": found}


def prepare_lengths(config: ConfigDict, cache: pathlib.Path) -> None:
    """Writes the embedded corpus in sequences of up to each of LENGTHS."""
    with workdir.locked(cache):
        for length in LENGTHS:
            folder = cache / f"text-{length}"
            if not folder.exists():
                prepare_text(
                    PrepareOptions(
                        inputs=("embedded",),
                        output=str(folder),
                        tokenizer=str(pathlib.Path(config.data.path) / "tokenizer.json"),
                        max_seq_len=length,
                        long_documents="split",
                    )
                )


def table(config: ConfigDict, found: Found, seconds: StepSeconds, picture: str) -> str:
    """The results, with machine, versions and command."""
    first = jobs(config)[0]
    one = variant_config(config, first)
    of = functools.partial(by_seed, found)
    lines = [
        "# Each of MosaicBERT's changes turned off alone",
        "",
        f"{datetime.date.today()}, {processor()}, Python {platform.python_version()}, jax "
        f"{jax.__version__}",
        "`python -m experiments.ablation --config=experiments/configs/ablation.py "
        "--workdir=runs/ablation --config.data.path=DIR`",
        "",
        f"{one.model.num_hidden_layers} layers of {one.model.hidden_size} with "
        f"{one.model.num_attention_heads} heads on the embedded corpus, "
        f"{one.train.batch_tokens:,} slots a step, float32. Steps a second: with all variants "
        f"taking turns, data and all ({seconds.machine}; median). Each run has the whole schedule "
        f"in {first.budget} at this speed. Held out: masked at 15%. Mean of the seeds (lowest to "
        "highest).",
        "",
        "| turned off | steps/s | steps | seeds | held-out loss | held-out masked accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in OFF:
        steps = of(name, first.budget, "steps")
        if steps:
            lines.append(
                f"| {name} | {1 / seconds.seconds[name]:.1f} | {steps[0]:,} | {len(steps)} | "
                f"{mean_and_range(of(name, first.budget, 'eval_loss'))} | "
                f"{mean_and_range(of(name, first.budget, 'eval_masked_accuracy'))} |"
            )
    lines += ["", *_numerics(config, found), *_lengths(config, found, picture)]
    return "\n".join(lines) + "\n"


def _numerics(config: ConfigDict, found: Found) -> list[str]:
    """Low precision LayerNorm at equal steps."""
    budget = f"{config.numerics_steps}ba"
    rows = {name: by_seed(found, name, budget, "eval_loss") for name in NUMERICS}
    if not any(rows.values()):
        return []
    return [
        f"Low precision LayerNorm, at {config.numerics_steps} steps: a CPU emulates bfloat16, so "
        "that its speed says nothing.",
        "",
        "| computed in | seeds | held-out loss |",
        "| --- | --- | --- |",
        *(f"| {name} | {len(row)} | {mean_and_range(row, 4)} |" for name, row in rows.items()),
        "",
    ]


def _lengths(config: ConfigDict, found: Found, picture: str) -> list[str]:
    """Losses on longer texts."""
    rows = _at_lengths(config, found)
    if not rows:
        return []
    return [
        "Longer than trained: the loss of the models above that had ALiBi and learned positions, "
        "trained on at most 128 tokens, on the held-out documents cut at greater lengths (the "
        "table of positions has 1,024 entries, of which those past 128 have never been trained).",
        "",
        f"| positions | {' | '.join(f'{length:,} tokens' for length in LENGTHS)} |",
        f"| --- |{' --- |' * len(LENGTHS)}",
        *(
            f"| {_POSITIONS[name]} | "
            f"{' | '.join(mean_and_range([row[str(n)] for row in losses]) for n in LENGTHS)} |"
            for name, losses in rows.items()
        ),
        "",
        f"![loss at lengths]({picture}.png)",
    ]


_POSITIONS = {"nothing": "ALiBi", "ALiBi": "learned"}


def _at_lengths(config: ConfigDict, found: Found) -> dict[str, list[dict[str, float]]]:
    rows = {name: by_seed(found, name, config.budgets[0], "at_lengths") for name in OF_LENGTHS}
    return {name: losses for name, losses in rows.items() if losses}


def draw(config: ConfigDict, found: Found, path: pathlib.Path) -> None:
    """Loss over the length of the texts; bars from the lowest to the highest seed."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, losses in _at_lengths(config, found).items():
        values = [[row[str(length)] for row in losses] for length in LENGTHS]
        means = [statistics.fmean(value) for value in values]
        spread = [
            [mean - min(value) for mean, value in zip(means, values, strict=True)],
            [max(value) - mean for mean, value in zip(means, values, strict=True)],
        ]
        axis.errorbar(LENGTHS, means, spread, marker="o", capsize=4, label=_POSITIONS[name])
    axis.axvline(128, color="gray", linestyle=":", label="trained up to here")
    axis.set(xlabel="tokens of a text", ylabel="held-out loss", xscale="log")
    axis.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    with explained("interrupted; the same command resumes"):
        config, folder, target = read_command(sys.argv, "experiments/results/ablation")
        prepare_lengths(config, folder)
        seconds = step_seconds(config, folder, prepare_variant)
        jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
        todo = [*jobs(config), *numerics_jobs(config)]
        after = functools.partial(at_lengths, config, folder)
        for found in run(todo, config, folder, seconds, prepare=prepare_variant, after=after):
            target.with_suffix(".md").write_text(table(config, found, seconds, target.name))
            if _at_lengths(config, found):
                draw(config, found, target.with_suffix(".png"))
        print(target.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()

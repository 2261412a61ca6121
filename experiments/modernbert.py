"""What each of ModernBERT's changes to MosaicBERT is worth.

    python -m experiments.modernbert --config=experiments/configs/modernbert.py \\
        --workdir=runs/modernbert --config.data.path=DIR [--output=experiments/results/modernbert]

See experiments/configs/modernbert.py. Writes OUTPUT.md and OUTPUT.png as it goes.
"""

import sys

from ml_collections import ConfigDict

from experiments.comparison import (
    Found,
    Job,
    StepSeconds,
    by_seed,
    heading,
    jobs,
    mean_and_deviation,
    steps_of,
    table_of_changes,
    variant_config,
    write_changes,
)
from experiments.configs.modernbert import CHANGES, WITHOUT
from mosaicbert_jax.errors import explained


def table(config: ConfigDict, found: Found, seconds: StepSeconds, picture: str) -> str:
    """The results, with machine, versions and command."""
    first = jobs(config)[0]
    one = variant_config(config, first)
    lines = [
        *heading("Each of ModernBERT's changes to MosaicBERT alone", "modernbert"),
        f"{one.model.num_hidden_layers} layers of {one.model.hidden_size} with "
        f"{one.model.num_attention_heads} heads on the embedded corpus, rows of "
        f"{one.data.row_length} and {one.train.batch_tokens:,} slots a step, a peak learning rate "
        f"of {one.optimizer.learning_rate:g} for all, float32. Steps a second: with all variants "
        f"taking turns, data and all ({seconds.machine}; median). Each run has the whole schedule "
        f"in {first.budget} at this speed. Held out: masked at 15%. Mean of the seeds ± standard "
        "deviation.",
        "",
        *table_of_changes(CHANGES, first.budget, found, seconds),
        "",
        *_without(config, found, seconds),
    ]
    lines += [
        "At two layers and 128 tokens, what pre-norm and RoPE are for (depth, length) is not seen; "
        "the window is 8 tokens on each side in the second layer.",
        "",
        f"![losses]({picture}.png)",
    ]
    return "\n".join(lines) + "\n"


def without_jobs(config: ConfigDict, seconds: StepSeconds) -> list[Job]:
    """ModernBERT with one of MosaicBERT's choices, at ModernBERT's steps."""
    steps = steps_of(config.budgets[0], seconds.seconds["ModernBERT"])
    return [Job(name, steps, seed) for seed in config.seeds for name in config.without]


def _without(config: ConfigDict, found: Found, seconds: StepSeconds) -> list[str]:
    """A table of those that are done."""
    steps = without_jobs(config, seconds)[0].budget
    rows = {name: by_seed(found, name, steps, "eval_loss") for name in WITHOUT}
    if not any(rows.values()):
        return []
    return [
        f"ModernBERT with one of MosaicBERT's choices, after {int(steps.removesuffix('ba')):,} "
        "steps too:",
        "",
        "| back to | seeds | held-out loss | held-out masked accuracy |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {len(losses)} | {mean_and_deviation(losses)} | "
            f"{mean_and_deviation(by_seed(found, name, steps, 'eval_masked_accuracy'))} |"
            for name, losses in rows.items()
            if losses
        ),
        "",
    ]


def main() -> None:
    with explained("interrupted; the same command resumes"):
        write_changes(
            sys.argv,
            "modernbert",
            list(CHANGES),
            more=without_jobs,
            table=table,
        )


if __name__ == "__main__":
    main()

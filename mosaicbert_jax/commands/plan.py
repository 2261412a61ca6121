"""Predicts memory, time and price of a pretraining run, without a GPU."""

import argparse

from mosaicbert_jax.errors import UserError

HELP = "memory, time and price of a pretraining run, predicted without a GPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--config", required=True, metavar="FILE",
        help="as for train.py; override a value with --config.KEY=VALUE",
    )  # fmt: skip
    parser.add_argument(
        "--gpu", required=True,
        help="a100-40gb, a100-80gb, h100, h200, or, with --price, a10, l4 or b200",
    )  # fmt: skip
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=[1],
        help="how many; several give a table, the step compiled for the first",
    )  # fmt: skip
    parser.add_argument(
        "--price", type=float, help="of a GPU-hour, dollars; the default is printed"
    )
    parser.add_argument("--budget", type=float, help="dollars; tells how many tokens they buy")
    parser.add_argument(
        "--tokens-per-sequence", type=float,
        help="on average; the default is 128, to which MosaicBERT's recipe cuts its documents, and "
        "for ModernBERT a whole row",
    )  # fmt: skip
    parser.add_argument("--inside", type=float, default=600, help="GB/s of a GPU to its node")
    parser.add_argument("--between", type=float, default=200, help="GB/s of a node to others")
    parser.add_argument(
        "--memory-fraction", type=float, default=0.75,
        help="of a GPU's memory that JAX takes, as XLA_PYTHON_CLIENT_MEM_FRACTION",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--picture", metavar="FILE.png", help="draw hours and price over the nodes")
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    import json

    from mosaicbert_jax.commands.config_line import read_flags
    from mosaicbert_jax.planning.collectives import Links
    from mosaicbert_jax.planning.plan_report import text
    from mosaicbert_jax.planning.planner import PlanOptions, plan

    if arguments.picture and not arguments.picture.endswith((".png", ".svg", ".pdf")):
        raise UserError(f"--picture {arguments.picture} must end in .png, .svg or .pdf")
    words = [f"--config={arguments.config}", *arguments.overrides]
    config, _, rest = read_flags(["plan", *words])
    if rest:
        raise UserError(f"{' '.join(rest)} is not recognized")
    made = plan(
        config,
        PlanOptions(
            gpu=arguments.gpu,
            gpus=arguments.gpus,
            nodes=tuple(arguments.nodes),
            price=arguments.price,
            budget=arguments.budget,
            tokens_per_sequence=arguments.tokens_per_sequence,
            links=Links(arguments.inside * 1e9, arguments.between * 1e9),
            memory_fraction=arguments.memory_fraction,
        ),
    )
    print(json.dumps(made.to_dict(), indent=2) if arguments.json else text(made), end="")
    if arguments.picture:
        from mosaicbert_jax.planning.picture import draw

        draw(made, arguments.picture)

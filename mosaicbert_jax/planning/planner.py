"""Makes a plan from a config and options; the step is compiled in the compile environment."""

import dataclasses
import json
import subprocess

from ml_collections import ConfigDict

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.planning import published
from mosaicbert_jax.planning.collectives import Links
from mosaicbert_jax.planning.compile_only import run_there
from mosaicbert_jax.planning.gpus import GPUS
from mosaicbert_jax.planning.plan import MEMORY_FRACTION, PRICES, Workload, buy, predict, run_slots
from mosaicbert_jax.planning.plan_report import Plan
from mosaicbert_jax.planning.profile import StepProfile
from mosaicbert_jax.planning.step_search import Order
from mosaicbert_jax.planning.training_step import Recipe
from mosaicbert_jax.pretraining import configuration
from mosaicbert_jax.pretraining.microbatch import AUTO, MARGIN
from mosaicbert_jax.storage.opening import open_model
from mosaicbert_jax.training import sharding
from mosaicbert_jax.training.durations import Duration
from mosaicbert_jax.training.flops import model_flops_per_token
from mosaicbert_jax.training.optimizer import optimizer_arguments

_TOKENS_PER_SEQUENCE = 128  # to which MosaicBERT's recipe cuts its documents
# By norm_position: bert-base-uncased's, padded, and ModernBERT's; a run takes that of its data.
_VOCABULARY = {"post": 30_528, "pre": 50_368}


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What a plan is for.

    Attributes:
      gpu: a name of GPUS.
      gpus: of a node.
      nodes: how many; the step is compiled for the first.
      price: of a GPU-hour, dollars; None: the config's, or that of PRICES.
      budget: dollars, if asked for.
      tokens_per_sequence: real ones, on average; None: as many as the recipe's longest.
      links: between the GPUs.
      memory_fraction: of a GPU's memory that JAX takes.
    """

    gpu: str
    gpus: int = 8
    nodes: tuple[int, ...] = (1,)
    price: float | None = None
    budget: float | None = None
    tokens_per_sequence: float | None = None
    links: Links = dataclasses.field(default_factory=Links)
    memory_fraction: float = MEMORY_FRACTION


def plan(config: ConfigDict, options: PlanOptions) -> Plan:
    """Compiles the step and predicts.

    Raises:
      UserError: a config or option that cannot be, or no environment to compile in.
    """
    _check(config, options)
    model, duration = _model(config), Duration.parse(config.train.duration, key="train.duration")
    workload = _workload(config, options, model)
    sharding.check_width(model, workload.mesh[2])
    run_slots(workload, duration)  # what cannot be told is said before a minute of compiling
    order = _order(config, options, model, workload)
    answer = _compiled(order)
    profile = StepProfile.from_dict(answer["profile"])
    predictions = {n: predict(workload, profile, duration, n) for n in options.nodes}
    first = predictions[workload.nodes]
    return Plan(
        workload=workload,
        profile=profile,
        model=published.model_name(model),
        parameters=answer["parameters"],
        dtype=model.dtype,
        duration=config.train.duration,
        memory_fraction=options.memory_fraction,
        limit=order.limit,
        largest=answer["largest"],
        measured={int(rows): size for rows, size in answer["measured"].items()},
        predictions=predictions,
        bought=buy(workload, first, options.budget) if options.budget else None,
    )


def _check(config: ConfigDict, options: PlanOptions) -> None:
    if config.get("kind") != "pretraining":
        raise UserError(f"a plan is for pretraining; this config is for {config.get('kind')}")
    configuration.check_settings(config)
    if options.gpu not in GPUS:
        raise UserError(f"--gpu {options.gpu}: there are {', '.join(GPUS)}")
    numbers = {
        "--gpus": options.gpus,
        "--nodes": min(options.nodes),
        "--price": options.price,
        "--budget": options.budget,
        "--tokens-per-sequence": options.tokens_per_sequence,
        "--inside": options.links.inside,
        "--between": options.links.between,
        "--memory-fraction": options.memory_fraction,
    }
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise UserError(f"{name} {number:g}: it must be above 0")
    if options.memory_fraction > 1:
        raise UserError(f"--memory-fraction {options.memory_fraction:g}: at most 1")


def _model(config: ConfigDict) -> BertConfig:
    """As trained on GPUs, with the recipe's vocabulary where the config leaves it to the data."""
    fields = dict(config.model)
    fields["vocab_size"] = fields["vocab_size"] or _VOCABULARY.get(fields["norm_position"])
    if fields["dtype"] == "auto":
        fields["dtype"] = "bfloat16"
    return BertConfig.from_fields(fields)


def _workload(config: ConfigDict, options: PlanOptions, model: BertConfig) -> Workload:
    row_length = config.data.row_length
    longest = row_length if model.norm_position == "pre" else _TOKENS_PER_SEQUENCE
    tokens = options.tokens_per_sequence or min(longest, row_length)
    if tokens > row_length:
        raise UserError(
            f"--tokens-per-sequence {tokens:g} is more than a row of data.row_length={row_length}"
        )
    nodes = options.nodes[0]
    mesh = sharding.mesh_shape(options.gpus, **{**config.mesh, "data": -1})
    shape = configuration.batch_shape(config, mesh[0] * mesh[1] * nodes)
    return Workload(
        gpu=options.gpu,
        devices=options.gpus,
        mesh=mesh,
        nodes=nodes,
        batch_rows=shape.rows,
        row_length=row_length,
        slots_per_sequence=tokens if config.data.packing else row_length,
        tokens_per_sequence=tokens,
        token_flops=_token_flops(config, model, round(tokens)),
        links=options.links,
        price=_price(config, options),
    )


def _teacher(config: ConfigDict, model: BertConfig) -> BertConfig | None:
    if not config.distill.teacher:
        return None
    stored = open_model(config.distill.teacher, config.distill.teacher_step)
    return BertConfig.from_fields(vars(stored.config) | {"dtype": model.dtype})


def _token_flops(config: ConfigDict, model: BertConfig, sequence_length: int) -> float:
    """As a run counts them, on average over its length."""
    rate = sum(configuration.masking_rates(config)) / 2
    found = model_flops_per_token(model, sequence_length=sequence_length, masking_rate=rate)
    if (teacher := _teacher(config, model)) is not None:
        found += model_flops_per_token(
            teacher, sequence_length=sequence_length, masking_rate=rate
        ) / 3  # fmt: skip
    return found


def _recipe(config: ConfigDict, model: BertConfig) -> Recipe:
    teacher = _teacher(config, model)
    return Recipe(
        optimizer=optimizer_arguments(config.optimizer),
        ema_decay=config.optimizer.ema_decay,
        activation_checkpointing=config.train.activation_checkpointing,
        masking_rate=max(configuration.masking_rates(config)),
        masking_unit=config.data.masking_unit,
        teacher=None if teacher is None else dataclasses.asdict(teacher),
    )


def _price(config: ConfigDict, options: PlanOptions) -> float:
    price = options.price or config.train.price_per_gpu_hour or PRICES.get(options.gpu)
    if price is None:
        raise UserError(
            f"--gpu {options.gpu} has no default price: give --price, or "
            "--config.train.price_per_gpu_hour, in dollars a GPU-hour"
        )
    return price


def _order(
    config: ConfigDict, options: PlanOptions, model: BertConfig, workload: Workload
) -> Order:
    shards = workload.mesh[0] * workload.mesh[1]
    rows = workload.batch_rows // workload.nodes
    microbatch = None
    if config.train.microbatch_tokens != AUTO:
        shape = configuration.batch_shape(config, shards * workload.nodes)
        microbatch = shape.microbatch_rows
    memory = workload.kind.memory * options.memory_fraction
    return Order(
        gpu=options.gpu,
        model=dataclasses.asdict(model),
        rows=rows,
        length=workload.row_length,
        sequence_length=round(workload.tokens_per_sequence),
        recipe=dataclasses.asdict(_recipe(config, model)),
        mesh=workload.mesh,
        microbatch=microbatch,
        limit=int((1 - MARGIN) * memory),
    )


def _compiled(order: Order) -> dict:
    """What the compile environment answers; see `step_search.compiled`."""
    try:
        said = run_there(
            "mosaicbert_jax.planning.compiled_plan", json.dumps(dataclasses.asdict(order))
        )
    except subprocess.CalledProcessError as error:
        raise UserError("the step could not be compiled; the compiler's output is above") from error
    answer = json.loads(said.splitlines()[-1])
    if "error" in answer:
        raise UserError(answer["error"])
    return answer

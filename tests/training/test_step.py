"""The training step: the original's losses, accumulation, two devices, dropout, empty batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertConfig, BertForMaskedLM
from mosaicbert_jax.training import sharding
from mosaicbert_jax.training.optimizer import apply, make_optimizer
from mosaicbert_jax.training.step import (
    TrainState,
    compiler_options,
    evaluation_step,
    masked_lm,
    train_step,
)
from tests.golden_cases import Case

CONFIG = BertConfig(
    vocab_size=128,
    num_hidden_layers=2,
    hidden_size=32,
    num_attention_heads=2,
    intermediate_size=64,
    hidden_dropout_prob=0.2,
    attention_probs_dropout_prob=0.1,
)
OPTIMIZER = make_optimizer(peak_learning_rate=1e-2, b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-4)
KEY = jax.random.key(3)


@functools.cache
def small_model() -> BertForMaskedLM:
    return nnx.jit(lambda: BertForMaskedLM(CONFIG, rngs=nnx.Rngs(0)))()


def start(model: BertForMaskedLM, optimizer=OPTIMIZER) -> tuple[nnx.GraphDef, TrainState]:
    graph, params = nnx.split(model)
    params = nnx.to_pure_dict(params)
    return graph, TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_batch(rows=8, length=48, slots=16, seed=0):
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(1, 4, (rows, length)), axis=1)
    segments[:, length - 5 :] = 0
    columns = np.sort(rng.permuted(np.tile(np.arange(length - 5), (rows, 1)), axis=1)[:, :slots])
    used = rng.random((rows, slots)) < 0.8  # so that rows have different numbers of predictions
    return {
        "tokens_BL": jnp.asarray(rng.integers(5, 128, (rows, length)), jnp.int32),
        "segment_ids_BL": jnp.asarray(segments, jnp.int32),
        "positions_BP": jnp.asarray(np.where(used, columns, 0), jnp.int32),
        "labels_BP": jnp.asarray(np.where(used, rng.integers(5, 128, used.shape), 0), jnp.int32),
        "weights_BP": jnp.asarray(used, jnp.float32),
    }


@functools.partial(jax.jit, static_argnames=("graph", "microbatches", "shards"))
def step(state, batch, rate, key, graph, microbatches=1, shards=1):
    return train_step(
        state,
        batch,
        rate,
        key,
        graph=graph,
        optimizer=OPTIMIZER,
        microbatch_rows=len(batch["tokens_BL"]) // shards // microbatches,
    )


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_the_originals_training_losses(tmp_path):
    """Case a: 12 steps of the whole path, loss by loss."""
    case = Case("a_h64_l2_a4_default")
    facts = case.facts["train"]
    model = BertForMaskedLM.from_pretrained(
        case.write_folder(tmp_path / "model"), hidden_dropout_prob=0.0
    )
    optimizer = make_optimizer(
        peak_learning_rate=facts["lr"],
        b1=facts["betas"][0],
        b2=facts["betas"][1],
        eps=facts["eps"],
        weight_decay=facts["weight_decay"],
    )
    graph, state = start(model, optimizer)
    positions_BP, labels_BP, weights_BP = case.predictions(slots=24)

    def loss_of(params):
        total, _ = nnx.merge(graph, params).loss(
            case.tokens_BL,
            case.segment_ids_BL,
            positions_BP,
            labels_BP,
            weights_BP,
            token_type_ids_BL=case.token_type_ids_BL,
        )
        return total / weights_BP.sum()

    @jax.jit
    def update(params, optimizer_state, rate):
        loss, gradients = jax.value_and_grad(loss_of)(params)
        return loss, *apply(optimizer, gradients, optimizer_state, params, rate)

    params, optimizer_state, losses = state.params, state.optimizer_state, []
    for rate in facts["lr_per_step"]:
        loss, params, optimizer_state = update(params, optimizer_state, jnp.float32(rate))
        losses.append(float(loss))
    losses.append(float(jax.jit(loss_of)(params)))
    np.testing.assert_allclose(losses, facts["loss_before_step_k_then_final"], rtol=2e-6)


@pytest.mark.parametrize("microbatches", [2, 8])
def test_accumulation_gives_the_undivided_update(microbatches):
    """Dropout included, and rows with different numbers of predictions."""
    graph, state = start(small_model())
    batch, rate = make_batch(), jnp.float32(1e-2)
    # A second step, where Adam's direction depends on the size of the gradient.
    whole, _ = step(state, batch, rate, KEY, graph)
    whole, metrics = step(whole, make_batch(seed=1), rate, KEY, graph)
    parts, _ = step(state, batch, rate, KEY, graph, microbatches)
    parts, parts_metrics = step(parts, make_batch(seed=1), rate, KEY, graph, microbatches)
    assert_trees_close(metrics, parts_metrics, rtol=1e-5)
    assert_trees_close(whole.optimizer_state, parts.optimizer_state, atol=1e-6)
    assert_trees_close(whole.params, parts.params, atol=1e-4)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_two_devices_as_one(microbatches):
    graph, state = start(small_model())
    batch, rate = make_batch(), jnp.float32(1e-2)
    one, one_metrics = step(state, batch, rate, KEY, graph)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        placed = sharding.place_batch(mesh, jax.tree.map(np.asarray, batch))
        whole = jax.device_put((state, rate, KEY), sharding.replicated(mesh))
        two, two_metrics = step(whole[0], placed, *whole[1:], graph, microbatches, shards=2)
    assert_trees_close(one_metrics, two_metrics, rtol=1e-5)
    assert_trees_close(one.optimizer_state, two.optimizer_state, atol=1e-6)


def test_dropout_differs_from_step_to_step_and_evaluation_has_none():
    graph, state = start(small_model())
    batch, rate = make_batch(), jnp.float32(0.0)  # the parameters stay, the step moves on
    after, first = step(state, batch, rate, KEY, graph)
    _, second = step(after, batch, rate, KEY, graph)
    assert first["loss"] != second["loss"]

    evaluate = functools.partial(evaluation_step, graph=graph)
    sums = jax.jit(evaluate)(state.params, batch)
    model = nnx.merge(graph, state.params)
    inputs = (batch[name] for name in ("tokens_BL", "segment_ids_BL"))
    logits_BPV = nnx.jit(model)(*inputs, positions_BP=batch["positions_BP"])
    log_BPV = jax.nn.log_softmax(logits_BPV)
    loss_BP = -jnp.take_along_axis(log_BPV, batch["labels_BP"][..., None], axis=-1)[..., 0]
    hits_BP = logits_BPV.argmax(-1) == batch["labels_BP"]
    np.testing.assert_allclose(sums["loss"], (loss_BP * batch["weights_BP"]).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["correct"], (hits_BP * batch["weights_BP"]).sum())


def test_dropout_follows_the_key_and_the_state_is_donated():
    graph, state = start(small_model())
    batch, rate = make_batch(), jnp.float32(0.0)
    _, one = step(state, batch, rate, KEY, graph)
    _, other = step(state, batch, rate, jax.random.key(4), graph)
    assert one["loss"] != other["loss"]

    settings = {"graph": graph, "optimizer": OPTIMIZER}
    given = jax.tree.map(jnp.copy, state)
    donating = jax.jit(functools.partial(train_step, **settings), donate_argnums=0)
    donating(given, batch, rate, KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))


def test_a_batch_without_predictions_changes_only_by_decay():
    """The original's loss is NaN there."""
    graph, state = start(small_model())
    batch = make_batch() | {"weights_BP": jnp.zeros((8, 16))}
    after, metrics = step(state, batch, jnp.float32(1e-2), KEY, graph)
    assert metrics["loss"] == 0
    decayed = jax.tree.map(lambda p: p * (1 - 1e-4), state.params)
    assert_trees_close(after.params, decayed, rtol=1e-6)


def test_activation_checkpointing_changes_memory_alone():
    graph, state = start(small_model())
    batch = make_batch()

    def gradients(activation_checkpointing):
        objective = masked_lm(activation_checkpointing=activation_checkpointing)

        def loss(params):
            return objective.sums(nnx.merge(graph, params), batch, KEY)[0]

        return jax.jit(jax.value_and_grad(loss)).lower(state.params).compile()

    kept, computed_again = gradients(False), gradients(True)
    assert_trees_close(kept(state.params), computed_again(state.params), rtol=1e-5, atol=1e-6)
    flops = [program.cost_analysis()["flops"] for program in (kept, computed_again)]
    assert 1.1 < flops[1] / flops[0] < 1.4


def test_a_gpu_does_not_autotune_where_equal_bits_are_wanted():
    # That XLA knows these options for GPUs is in tests/planning/test_training_step.py.
    assert compiler_options(deterministic=True, platform="gpu")["xla_gpu_deterministic_ops"]
    assert compiler_options(deterministic=False, platform="gpu") == {}
    assert compiler_options(deterministic=True, platform="cpu") == {}

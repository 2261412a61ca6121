"""Decoupled AdamW against the values of Composer's."""

import jax.numpy as jnp
import numpy as np

from mosaicbert_jax.training.optimizer import apply, make_optimizer
from tests.golden_cases import FOLDER


def test_thirty_steps_of_decoupled_adamw():
    golden = np.load(FOLDER / "decoupled_adamw.npz")
    optimizer = make_optimizer(
        peak_learning_rate=float(golden["lr"]),
        b1=float(golden["betas"][0]),
        b2=float(golden["betas"][1]),
        eps=float(golden["eps"]),
        weight_decay=float(golden["weight_decay"]),
    )
    params = jnp.asarray(golden["p0"])
    state = optimizer.init(params)
    for gradient, rate, expected in zip(
        golden["grads"], golden["lrs"], golden["params_after_each_step"], strict=True
    ):
        rate = jnp.asarray(rate, jnp.float32)
        params, state = apply(optimizer, jnp.asarray(gradient), state, params, rate)
        np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-7)

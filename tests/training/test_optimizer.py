"""Decoupled AdamW against the values of Composer's; the others against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from mosaicbert_jax.training.optimizer import apply, averaged, make_optimizer
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


RATES = {"peak_learning_rate": 1e-2, "b1": 0.9, "b2": 0.98, "eps": 1e-6, "weight_decay": 1e-3}


def steps(optimizer, params, gradients):
    """The parameters after each of several gradients, at the peak learning rate."""
    state, found = optimizer.init(params), []
    for gradient in gradients:
        params, state = apply(optimizer, gradient, state, params, jnp.float32(1e-2))
        found.append(params)
    return found


def draws(*shape, scale=(1.0, 1.0, 30.0, 1.0)):
    """Gradients, of which the third is far larger than those before."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(s * rng.normal(size=shape), jnp.float32) for s in scale]


def test_stable_adamw_shortens_the_step_of_a_sudden_gradient():
    params, gradients = jnp.ones((4, 3)), draws(4, 3)
    found = steps(make_optimizer(**RATES, name="stable_adamw"), params, gradients)
    p, m, v = np.ones((4, 3)), 0.0, 0.0
    for t, (g, actual) in enumerate(zip(map(np.asarray, gradients), found, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        second = v / (1 - 0.98**t)
        direction = m / (1 - 0.9**t) / (np.sqrt(second) + 1e-6)
        rms = np.sqrt(np.mean(g**2 / np.maximum(second, 1e-12)))
        p = p * (1 - 1e-3) - 1e-2 * direction / max(1.0, rms)
        np.testing.assert_allclose(actual, p, rtol=1e-5)
    plain = steps(make_optimizer(**RATES), params, gradients)
    np.testing.assert_allclose(plain[0], found[0], rtol=1e-5)
    assert np.abs(plain[2] - found[2]).max() > 1e-3  # of the sudden one


def test_muon_makes_momentum_orthogonal_and_leaves_the_rest_to_adam():
    names = ("kernel", "scale", "bias", "embedding")
    params = {name: jnp.ones((6, 4)) for name in names} | {
        "classifier": {"kernel": jnp.ones((6, 4))}
    }
    gradients = [dict.fromkeys(names, g) | {"classifier": {"kernel": g}} for g in draws(6, 4)]
    found = steps(make_optimizer(**RATES, name="muon"), params, gradients)
    adam = steps(make_optimizer(**RATES), jnp.ones((6, 4)), [g["kernel"] for g in gradients])
    for mine, adams in zip(found, adam, strict=True):
        for other in (*(mine[name] for name in names[1:]), mine["classifier"]["kernel"]):
            np.testing.assert_allclose(other, adams, rtol=1e-6)

    p, m = np.ones((6, 4)), 0.0
    for t, (g, actual) in enumerate(zip(gradients, found, strict=True), start=1):
        g = np.asarray(g["kernel"])
        m = 0.95 * m + 0.05 * g
        nesterov = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
        u, _, vt = np.linalg.svd(nesterov, full_matrices=False)
        update = (p * (1 - 1e-3) - np.asarray(actual["kernel"])) / 1e-2 / (0.2 * np.sqrt(6))
        # The five steps leave singular values between 0.7 and 1.2 instead of 1.
        singular = np.diag(u.T @ update @ vt.T)
        np.testing.assert_allclose(u.T @ update @ vt.T, np.diag(singular), atol=1e-4)
        assert singular.min() > 0.6
        assert singular.max() < 1.3
        p = np.asarray(actual["kernel"])


def test_clipping_scales_all_gradients_alike():
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    large = {"a": jnp.full(3, 3.0), "b": jnp.full((2, 2), 4.0)}
    norm = np.sqrt(3 * 9 + 4 * 16)
    small = jax.tree.map(lambda g: g * (0.5 / norm), large)
    clipping, plain = make_optimizer(**RATES, clip_norm=0.5), make_optimizer(**RATES)
    assert jax.tree.structure(clipping.init(params)) == jax.tree.structure(plain.init(params))
    for given, expected in ((large, small), (small, small)):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
            clipping.update(given, clipping.init(params), params)[1],
            plain.update(expected, plain.init(params), params)[1],
        )


def test_the_moving_average():
    average, rng = np.zeros(5), np.random.default_rng(0)
    found = jnp.zeros(5)
    for step in range(30):
        params = rng.normal(size=5)
        keep = min(0.8, (1 + step) / (10 + step))
        average = keep * average + (1 - keep) * params
        found = averaged(found, jnp.asarray(params, jnp.float32), jnp.int32(step), 0.8)
        np.testing.assert_allclose(found, average, rtol=1e-4, atol=1e-6)

"""Optimizers with decoupled weight decay, their learning rate an argument of every step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

OPTIMIZERS = ("adamw", "stable_adamw", "muon")
_MUON, _ADAM = "muon", "adam"
# Of the root mean square of an AdamW update, by which Muon's are scaled.
_ADAM_RMS = 0.2


def make_optimizer(
    *,
    peak_learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    name: str = "adamw",
    muon_beta: float = 0.95,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """A direction plus the decay, still to be multiplied by -learning rate (`apply`).

    One step is p <- p (1 - weight_decay lr_t / lr_peak) - lr_t direction(g): Composer's
    DecoupledAdamW, after Loshchilov and Hutter (2019, arXiv:1711.05101), where the decay follows
    the schedule's shape and not the size of the learning rate. In the terms of optax.adamw,
    p <- p - lr_t (adam(g) + w' p), that is w' = weight_decay / lr_peak. All parameters decay.

    Args:
      peak_learning_rate: the schedule's highest value.
      b1, b2, eps: Adam's.
      weight_decay: the share of a parameter that a step at the peak takes away.
      name: "adamw"; "stable_adamw", see `stable_adam`; or "muon", which has `scale_by_muon` for
        the kernels of dense layers and Adam for tables, norms, biases and classifiers.
      muon_beta: Muon's momentum.
      clip_norm: the global norm that gradients are scaled down to; None: any.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    direction = {
        "adamw": lambda: adam,
        "stable_adamw": lambda: stable_adam(b1=b1, b2=b2, eps=eps),
        "muon": lambda: optax.partition({_MUON: scale_by_muon(muon_beta), _ADAM: adam}, muon_takes),
    }[name]()
    decay = optax.add_decayed_weights(weight_decay / peak_learning_rate)
    return clipped(optax.chain(direction, decay), clip_norm)


def clipped(
    optimizer: optax.GradientTransformation, norm: float | None
) -> optax.GradientTransformation:
    """The optimizer on gradients that are scaled down to a global norm; its state is the same."""
    if norm is None:
        return optimizer
    clip = optax.clip_by_global_norm(norm)

    def update(gradients, state, params=None):
        gradients, _ = clip.update(gradients, clip.init(gradients))
        return optimizer.update(gradients, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def optimizer_of(settings: ConfigDict) -> optax.GradientTransformation:
    """`make_optimizer` from the group `optimizer` of a config."""
    return make_optimizer(**optimizer_arguments(settings))


def optimizer_arguments(settings: ConfigDict) -> dict[str, Any]:
    """Those of `make_optimizer`."""
    names = ("b1", "b2", "eps", "weight_decay", "name", "muon_beta", "clip_norm")
    return {"peak_learning_rate": settings.learning_rate} | {n: settings[n] for n in names}


def stable_adam(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam whose step is shortened for a tensor whose gradients outgrow their second moment.

    The update of a tensor is divided by max(1, rms(g / sqrt(v))), v being the second moment after
    the step, without bias: StableAdamW (Wortsman et al., 2023, arXiv:2304.13013), ModernBERT's.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(gradients, state, params=None):
        updates, state = adam.update(gradients, state, params)
        second_moments = optax.tree.bias_correction(state.nu, b2, state.count)

        def shortened(update, gradient, second_moment):
            ratio = jnp.mean(gradient**2 / jnp.maximum(second_moment, eps**2))
            return update / jnp.maximum(1.0, jnp.sqrt(ratio))

        return jax.tree.map(shortened, updates, gradients, second_moments), state

    return optax.GradientTransformation(adam.init, update)


def scale_by_muon(beta: float) -> optax.GradientTransformation:
    """Muon's orthogonalized momentum (Jordan et al., 2024), as long as an update of AdamW.

    An orthogonal matrix of n x m has a root mean square of 1 / sqrt(max(n, m)); times 0.2 of its
    inverse (Liu et al., 2025, arXiv:2502.16982), one learning rate does for both parts.
    """

    def scaled(updates, params=None):
        return jax.tree.map(lambda u: u * (_ADAM_RMS * math.sqrt(max(u.shape))), updates)

    def shapes(params):  # all are matrices; without this, optax does not skip masked ones
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)

    orthogonal = optax.contrib.scale_by_muon(beta=beta, weight_dimension_numbers=shapes)
    return optax.chain(orthogonal, optax.stateless(scaled))


def muon_takes(params: Any) -> Any:
    """Which optimizer has each parameter, as a tree of labels."""

    def label(path: tuple, _) -> str:
        *above, name = (getattr(key, "key", key) for key in path)
        return _MUON if name == "kernel" and "classifier" not in above else _ADAM

    return jax.tree.map_with_path(label, params)


def apply(
    optimizer: optax.GradientTransformation,
    gradients: optax.Updates,
    optimizer_state: optax.OptState,
    params: optax.Params,
    learning_rate: jax.Array,
) -> tuple[optax.Params, optax.OptState]:
    """The parameters and optimizer state after one step; the learning rate is a scalar."""
    directions, optimizer_state = optimizer.update(gradients, optimizer_state, params)
    updates = optax.tree.scale(-learning_rate, directions)
    return optax.apply_updates(params, updates), optimizer_state


def averaged(average: optax.Params, params: optax.Params, step: jax.Array, decay: float) -> Any:
    """The exponential moving average of the parameters after a step.

    Args:
      average: the one before it.
      step: how many were completed before; the first ones count for more, so that random weights
        are forgotten: the decay is at most (1 + step) / (10 + step).
    """
    count = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    return jax.tree.map(lambda old, new: new + keep * (old - new), average, params)

"""AdamW with decoupled weight decay, its learning rate an argument of every step."""

import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict


def make_optimizer(
    *, peak_learning_rate: float, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """Adam's direction plus the decay, still to be multiplied by -learning rate (`apply`).

    One step is p <- p (1 - weight_decay lr_t / lr_peak) - lr_t adam(g): Composer's
    DecoupledAdamW, after Loshchilov and Hutter (2019, arXiv:1711.05101), where the decay follows
    the schedule's shape and not the size of the learning rate. In the terms of optax.adamw,
    p <- p - lr_t (adam(g) + w' p), that is w' = weight_decay / lr_peak. All parameters decay.

    Args:
      peak_learning_rate: the schedule's highest value.
      b1, b2, eps: Adam's.
      weight_decay: the share of a parameter that a step at the peak takes away.
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay / peak_learning_rate),
    )


def optimizer_of(settings: ConfigDict) -> optax.GradientTransformation:
    """`make_optimizer` from the group `optimizer` of a config."""
    return make_optimizer(
        peak_learning_rate=settings.learning_rate,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def apply(
    optimizer: optax.GradientTransformation,
    gradients: optax.Updates,
    optimizer_state: optax.OptState,
    params: optax.Params,
    learning_rate: Float[Array, ""],
) -> tuple[optax.Params, optax.OptState]:
    """The parameters and optimizer state after one step."""
    directions, optimizer_state = optimizer.update(gradients, optimizer_state, params)
    updates = optax.tree.scale(-learning_rate, directions)
    return optax.apply_updates(params, updates), optimizer_state

"""AdamW against a few lines of NumPy, and the moving average against its closed form."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dit.design.config import OptimConfig
from dit.train.optim import adamw, moving_average


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_the_papers_update_with_decoupled_decay(weight_decay):
    config = OptimConfig(learning_rate=0.01, weight_decay=weight_decay, b1=0.8, b2=0.95, eps=1e-3)
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(5), rng.standard_normal((12, 5)) * np.logspace(-4, 1, 5)

    x, m, v = start.copy(), np.zeros(5), np.zeros(5)
    for i, g in enumerate(gradients, start=1):
        m = config.b1 * m + (1 - config.b1) * g
        v = config.b2 * v + (1 - config.b2) * g * g
        step = (m / (1 - config.b1**i)) / (np.sqrt(v / (1 - config.b2**i)) + config.eps)
        x = x - config.learning_rate * (step + weight_decay * x)

    optimizer, params = adamw(config), {"w": jnp.asarray(start, jnp.float32)}
    state = optimizer.init(params)
    for g in gradients:
        updates, state = optimizer.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], x, rtol=1e-5, atol=1e-6)


def test_moving_average_of_a_constant_closes_in_geometrically():
    ema, params = {"w": jnp.asarray([1.0, -2.0])}, {"w": jnp.asarray([3.0, 5.0])}
    for _ in range(7):
        ema = moving_average(ema, params, 0.9)
    expected = np.array([3.0, 5.0]) + 0.9**7 * (np.array([1.0, -2.0]) - np.array([3.0, 5.0]))
    np.testing.assert_allclose(ema["w"], expected, rtol=1e-5)
    np.testing.assert_array_equal(moving_average(ema, params, 0.0)["w"], params["w"])
    np.testing.assert_array_equal(moving_average(ema, params, 1.0)["w"], ema["w"])

"""The optimizers against PyTorch's, which the recipes are written for."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from orc_jax import config as configs
from orc_jax import optimizers

TORCH = {
    "sgd": lambda p, s: torch.optim.SGD(
        p, s.learning_rate, s.momentum, weight_decay=s.weight_decay, nesterov=s.nesterov
    ),
    "adam": lambda p, s: torch.optim.Adam(p, s.learning_rate, weight_decay=s.weight_decay),
    "adamw": lambda p, s: torch.optim.AdamW(p, s.learning_rate, weight_decay=s.weight_decay),
}


@pytest.mark.parametrize(
    "name, nesterov", [("sgd", True), ("sgd", False), ("adam", False), ("adamw", False)]
)
def test_ten_steps_equal_pytorchs(name, nesterov):
    settings = configs.default_config().optimizer
    settings.update(name=name, nesterov=nesterov, weight_decay=0.01)
    target = np.linspace(-1, 1, 5, dtype=np.float32)

    weights = torch.ones(5, requires_grad=True)
    theirs = TORCH[name]([weights], settings)
    for _ in range(10):
        theirs.zero_grad()
        ((weights - torch.tensor(target)) ** 2).sum().backward()
        theirs.step()

    ours, params = optimizers.optimizer(settings), jnp.ones(5)
    state = ours.init(params)
    for _ in range(10):
        updates, state = ours.update(2 * (params - target), state, params)
        params = optax.apply_updates(params, -settings.learning_rate * updates)
    np.testing.assert_allclose(params, weights.detach().numpy(), rtol=2e-4, atol=1e-5)

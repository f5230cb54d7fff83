"""Singular values from thin factors are those of the whole matrix."""

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interpret.circuits import directions, singular_values
from tests.interpret.small import model_of
from tests.interpret.test_capture import CONFIGS


def whole(cfg, weights, head: int, circuit: str) -> np.ndarray:
    """(D, D), from the weights of one head and of the key that it shares."""
    shared = head // (cfg.heads // cfg.n_kv_heads)
    kernel = {
        name: np.asarray(part["kernel"], np.float64) for name, part in weights["attention"].items() if "kernel" in part
    }
    if circuit == "qk":
        return kernel["q"][:, head] @ kernel["k"][:, shared].T
    return kernel["v"][:, shared] @ kernel["out"][head]


@pytest.mark.parametrize("name", ["gpt2", "gemma"])
def test_singular_values_are_those_of_the_whole_matrix(name):
    """Heads of their own, and heads that share keys."""
    cfg = CONFIGS[name]
    model = model_of(cfg)
    found = singular_values(model)
    for circuit in ("qk", "ov"):
        assert found[circuit].shape == (cfg.layers, cfg.heads, cfg.head_width)
        for layer, head in ((0, 0), (1, 3)):
            dense = whole(cfg, model.params["blocks"][layer], head, circuit)
            expected = np.linalg.svd(dense, compute_uv=False)[: cfg.head_width]
            np.testing.assert_allclose(found[circuit][layer, head], expected, atol=1e-5)
            parts = directions(model, layer, head, circuit)
            np.testing.assert_allclose(parts.values, expected, atol=1e-5)
            np.testing.assert_allclose((parts.left.T * parts.values) @ parts.right, dense, atol=1e-5)
            for side in (parts.left, parts.right):
                np.testing.assert_allclose(side @ side.T, np.eye(cfg.head_width), atol=1e-5)


def test_what_a_user_gets_wrong_is_one_line():
    model = model_of(CONFIGS["gpt2"])
    with pytest.raises(UserError, match="layer 2: expected 0 to 1"):
        directions(model, 2, 0, "ov")
    with pytest.raises(UserError, match="head 4: expected 0 to 3"):
        directions(model, 0, 4, "ov")
    with pytest.raises(UserError, match="circuit 'vo': expected qk or ov"):
        directions(model, 0, 0, "vo")

"""The moments keep small values, follow the truth for thousands of steps, and overflow late."""

import numpy as np
import pytest
import torch

from radam_fused import FusedRAdam

from .harness.helpers import parameters

BETAS = [0.0, 0.1, 0.49, 0.5, 0.51, 0.9]
LARGE = 1.5e19  # its square is near the largest float32


def moments_after(values, betas, backend="cpu", make=FusedRAdam):
    """The moments after steps with the given gradients, one parameter each."""
    [param] = parameters((len(values[0]),))
    optimizer = make([param], betas=betas, **({} if backend is None else {"backend": backend}))
    for gradient in values:
        param.grad = torch.tensor(gradient)
        optimizer.step()
    state = optimizer.state[param]
    return state["exp_avg"].double().numpy(), state["exp_avg_sq"].double().numpy()


@pytest.mark.filterwarnings("ignore:no step is ever rectified")
@pytest.mark.parametrize("beta", BETAS)
def test_a_small_gradient_after_a_large_one_is_kept(beta, backend):
    """The second form of each moment: beta = 0 must give the last gradient."""
    first, second = np.array([1.0, 1e-9, 3.0]), np.array([1e-9, 1.0, -3e-5])
    m, v = moments_after([first.tolist(), second.tolist()], (beta, beta), backend)
    true_m = (1 - beta) * (beta * first + second)
    true_v = (1 - beta) * (beta * first**2 + second**2)
    # The difference of beta and its float32 value, and a few roundings of the larger term.
    np.testing.assert_allclose(m, true_m, rtol=1e-6, atol=1e-7 if beta > 0.1 else 1e-13)
    np.testing.assert_allclose(v, true_v, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:no step is ever rectified")
def test_without_memory_the_moments_are_the_last_gradient(backend):
    m, v = moments_after([[1.0], [1e-9]], (0.0, 0.0), backend)
    assert m == np.float32(1e-9)
    assert v == np.float32(1e-9) * (np.float32(1e-9) * np.float32(1))


@pytest.mark.parametrize("beta2", [0.999, 0.9999])
def test_the_second_moment_does_not_drift(beta2):
    """In float32, fl(beta2) and fl(1 - beta2) do not sum to 1; weights that do not drift must."""
    steps, size = 3000, 500
    gradients = np.random.default_rng(0).standard_normal((steps, size)).astype(np.float32)
    _, v = moments_after(gradients.tolist(), (0.9, beta2))
    true = np.zeros(size)
    for gradient in gradients.astype(np.float64):
        true += (gradient**2 - true) * (1 - beta2)
    error = v / true - 1
    assert abs(error.mean()) < 1e-7
    assert np.sqrt((error**2).mean()) < 3e-6
    naive = np.zeros(size, np.float32)
    for gradient in gradients:
        naive = naive * np.float32(beta2) + (gradient * gradient) * np.float32(1 - beta2)
    assert abs((naive / true - 1).mean()) > 1e-6, "a drift must be visible to this test"


def test_the_second_moment_overflows_no_earlier_than_in_torch(backend):
    values = [[3 * LARGE, 20 * LARGE, -20 * LARGE]]
    _, ours = moments_after(values, (0.9, 0.999), backend)
    _, theirs = moments_after(values, (0.9, 0.999), None, torch.optim.RAdam)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert np.isfinite(ours).all()


def test_an_overflow_of_the_second_moment_shows_in_the_next_step(backend):
    [param] = parameters((2,))
    optimizer = FusedRAdam([param], betas=(0.9, 0.8), backend=backend, rectify=False)
    for gradient in (1e30, 1.0):
        param.grad = torch.full((2,), gradient)
        optimizer.step()
    assert param.isnan().all()

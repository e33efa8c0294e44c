"""The Kalman smoother against linear algebra on all frames at once."""

import pytest
import torch

from ppse.infer import log_density
from ppse.testing import StateSpace, kalman_smoother


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_kalman_smoother_is_the_posterior_of_the_dense_normal_law(frames: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = 2
    transition, decoder, x = 0.6 * matrix(size, size), matrix(3, size), matrix(frames, 3)
    process, noise, start = (a @ a.mT + 0.1 * torch.eye(len(a), dtype=a.dtype) for a in (matrix(size, size), matrix(3, 3), matrix(size, size)))
    found = kalman_smoother(x, transition, process, decoder, noise, start)
    # All frames as one vector: z = M e with e the first state and the innovations, x = (I * D) z + noise.
    zero = torch.zeros(size, size, dtype=torch.float64)
    rows = [torch.cat([torch.linalg.matrix_power(transition, t - u) if u <= t else zero for u in range(frames)], 1) for t in range(frames)]
    mixing, eye = torch.cat(rows), torch.eye(frames, dtype=torch.float64)
    prior = mixing @ torch.block_diag(start, *[process] * (frames - 1)) @ mixing.mT
    joint = torch.kron(eye, decoder)
    weight = torch.kron(eye, torch.linalg.inv(noise).contiguous())
    precision = torch.linalg.inv(prior) + joint.mT @ weight @ joint
    covariance = torch.linalg.inv(precision)
    mean = covariance @ joint.mT @ weight @ x.flatten()
    blocks = covariance.unflatten(0, (frames, size)).unflatten(2, (frames, size)).transpose(1, 2)
    torch.testing.assert_close(found.mean.flatten(), mean)
    torch.testing.assert_close(found.covariance, torch.stack([blocks[t, t] for t in range(frames)]))
    assert len(found.neighbours) == frames - 1
    for t in range(frames - 1):
        torch.testing.assert_close(found.neighbours[t], blocks[t, t + 1])


@pytest.mark.parametrize("recurrent", [False, True])
def test_posterior_of_the_state_space_model_is_that_of_its_graph(recurrent: bool) -> None:
    """The log density of a normal law is flat at its mean, and its curvature is the inverse of the covariance."""
    frames, size = 5, 2
    x = torch.linspace(-2, 3, 3 * frames, dtype=torch.float64).sin().reshape(frames, 3)
    model = StateSpace(x, x[:3, :size].cos(), noise=0.7, memory=-0.6, recurrent=recurrent)
    mean, covariance, neighbours = model.posterior()
    target = log_density(model)
    assert target.value_and_grad({"z": mean[None]})[1]["z"].abs().max() < 1e-10
    curvature = torch.autograd.functional.hessian(lambda z: target({"z": z.reshape(1, frames, size)}).sum(), mean.flatten())
    dense = torch.linalg.inv(-curvature).reshape(frames, size, frames, size)
    for t in range(frames):
        torch.testing.assert_close(dense[t, :, t], covariance[t])
        if t:
            torch.testing.assert_close(dense[t - 1, :, t], neighbours[t - 1])

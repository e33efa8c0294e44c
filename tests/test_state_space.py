"""The Kalman smoother against linear algebra on all frames at once."""

import pytest
import torch

from ppse.testing import kalman_smoother


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

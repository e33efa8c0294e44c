"""The published acceptance of frame by frame where frames are coupled: an approximation, kept for comparison."""

from __future__ import annotations

from collections.abc import Callable

from .density import LogDensity, Position
from .gibbs import _per_block
from .kernels import Info, Kernel, State, _without_gradient
from .receptive_field import frame_terms


def per_frame_acceptance(target: LogDensity, kernel: Callable[[LogDensity], Kernel]) -> Kernel:
    """Propose all frames at once and accept each by its own term of the density, as the published MHEM and MALAEM for RVAE do. Not exact.

    Where frames are coupled the terms of the neighbours of a frame, which the move changes as well, are left out of its decision, and
    those that are counted are taken at proposals of neighbours that may be rejected. Detailed balance does not hold, and the draws
    are not from the posterior, by however many they are: on linear-Gaussian models the error is that of docs/coupled.md. Where frames
    are independent it is exact, and what :func:`ppse.infer.log_density` does by itself. Right for coupled frames are whole
    utterances as blocks, and :func:`ppse.infer.windowed`. Random from the global generator.

    After each step the density is evaluated anew, at what was accepted in one frame and rejected in the next. Info is in the blocks of
    ``target``, its acceptance the mean over the frames.

    Args:
        target: a density that has all latents in the plate "frames".
        kernel: ``metropolis`` for MHEM, ``mala`` for MALAEM: ``lambda t: metropolis(t, 0.1)``.

    Raises:
        BlockError: when a latent lies outside of the frames; the message names it.

    References:
        Sadeghi & Serizel (2024), Posterior sampling algorithms for unsupervised speech enhancement with recurrent variational autoencoder.
    """
    made = kernel(frame_terms(target))

    def init(position: Position) -> State:
        return _without_gradient(target, position)

    def step(state: State) -> tuple[State, Info]:
        reached, info = made.step(made.init(state.position))
        new = init(reached.position)
        assert new.log_density is not None
        mean, share, failed = (_per_block(v.to(info.acceptance), target) for v in (info.acceptance, info.accepted, info.divergent))
        return new, Info(mean, share > 0, new.log_density, failed > 0)

    return Kernel(init, step)

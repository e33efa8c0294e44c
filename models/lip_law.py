"""What lips that are right look like, frame by frame, and lips that are not: so that a chain of regimes can tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import MultivariateNormal, MultivariateStudentT, TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

SIDE = 22
"""Images are averaged down to so many pixels either way."""

FLOOR = 1e-5
"""Added to mean squares before the logarithm, in the unit of the contrast of the recording: less than almost any true change of a mouth."""

LOOKS = 6
"""D, how many numbers say what a frame looks like."""

WIDER, DEGREES = 2.0, 3.0
"""Wrong lips: so many times the standard deviations of right ones, and degrees of freedom."""


class LipLaw(nn.Module):
    """p(f_t | right) = N(mu, Sigma)^w, p(f_t | wrong) = StudentT_3(mu, diag(2 sigma)^2)^w, f_t what the lips look like at frame t.

    f_t are six logarithms: how much of the image lies outside of the principal components of right lips, how far it lies out within
    them; the changes from the frame before, from that to the next, over four frames, and how far the frame lies off the middle of its two
    neighbours. All are relative to their medians over the recording, so that other speakers and cameras hardly matter; what is wrong all
    along is not found. The law of wrong lips was learnt from none: it knows as little of how they go wrong as that the numbers are unrelated.

    w < 1, as neighbouring frames tell the same: one over the time, in frames, over which the evidence is correlated for right lips. The
    law tells nothing, w = 0, until it has been learnt.

    Args:
        n_components: K, of the images.
    """

    mean: Tensor
    basis: Tensor
    deviation: Tensor
    loc: Tensor
    scale_tril: Tensor
    power: Tensor

    def __init__(self, n_components: int = 12) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(SIDE**2))
        self.register_buffer("basis", torch.eye(n_components, SIDE**2))
        self.register_buffer("deviation", torch.ones(n_components))
        self.register_buffer("loc", torch.zeros(LOOKS))
        self.register_buffer("scale_tril", torch.eye(LOOKS))
        self.register_buffer("power", torch.zeros(()))

    @torch.no_grad()
    def learn(self, recordings: Sequence[Tensor]) -> None:
        """Fit it to right lips, in closed form.

        Args:
            recordings: images (V, 44, 44) each, as :func:`ppse.models.lip_reader.prepared` makes them.

        Raises:
            ValueError: when they are too few or too short.
        """
        images = torch.cat([_small(each) for each in recordings])
        if len(images) < 10 * len(self.basis) or min(map(len, recordings)) < 2:
            raise ValueError(
                f"LipLaw.learn: {len(images)} images in {len(recordings)} recordings; expected {10 * len(self.basis)} or more, and two a recording"
            )
        self.mean.copy_(images.mean(0))
        _, spread, directions = torch.linalg.svd(images - self.mean, full_matrices=False)
        self.basis.copy_(directions[: len(self.basis)])
        self.deviation.copy_(spread[: len(self.basis)] / len(images) ** 0.5)
        looks = [self.looks(each) for each in recordings]
        self.loc.copy_(torch.cat(looks).mean(0))
        self.scale_tril.copy_(torch.linalg.cholesky(torch.cat(looks).T.cov()))
        self.power.copy_(1 / _correlated([self.right.log_prob(each) - self.wrong.log_prob(each) for each in looks]))

    @torch.no_grad()
    def looks(self, images: Tensor, good: Tensor | None = None) -> Tensor:
        """f_t of a recording, (V, D).

        Args:
            images: (V, 44, 44), as :func:`ppse.models.lip_reader.prepared` makes them.
            good: (V,), the frames of whose numbers the medians are taken; all without, or where there is none. Frames that repeat the one
                before do not count, as a picture that stands still for most of the time is no measure.
        """
        pixels = _small(images.to(self.mean))
        within = (pixels - self.mean) @ self.basis.T
        outside = (pixels - self.mean).square().sum(-1) - within.square().sum(-1)
        before, after = _shifted(within, -1), _shifted(within, 1)
        squares = [
            outside, (within / self.deviation).square().sum(-1) * (SIDE**2 / len(self.basis)), (pixels - _shifted(pixels, -1)).square().sum(-1),
            (after - 2 * within + before).square().sum(-1), (after - before).square().sum(-1),
            (_shifted(within, 2) - _shifted(within, -2)).square().sum(-1),
        ]
        found = (torch.stack(squares, -1) / SIDE**2).clamp_min(0).add(FLOOR).log()
        found[:1, 2] = found[1:2, 2] if len(found) > 1 else found[:1, 2]  # nothing comes before the first
        moving = squares[2] / SIDE**2 > FLOOR
        chosen = moving if good is None or not (moving & good).any() else moving & good
        return found - (found[chosen] if chosen.any() else found).median(0).values

    @property
    def right(self) -> TorchDistribution:
        """The law of f_t when the lips are right, but for its power."""
        return MultivariateNormal(self.loc, scale_tril=self.scale_tril)

    @property
    def wrong(self) -> TorchDistribution:
        """The law of f_t when they are not."""
        wide = WIDER * self.scale_tril.norm(dim=-1)
        return MultivariateStudentT(wide.new_tensor(DEGREES), self.loc, wide.diag())


class Looks(TorchDistribution):
    """What the lips look like at the frames of sound: by the law of right lips in some, by that of wrong ones in the others.

    Args:
        law: as learnt.
        right: boolean (…, T), in which frames.
        share: images a frame of sound has, about 0.4 for those of 16 ms: its log-probability is that part of the one of an image.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, law: LipLaw, right: Tensor, share: float = 1.0) -> None:
        self.law, self.chosen, self.share = law, right, share
        super().__init__(right.shape, torch.Size([LOOKS]), validate_args=False)

    @property
    def support(self) -> Any:
        return self.law.right.support

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> Looks:
        return Looks(self.law, self.chosen.expand(torch.Size(batch_shape)), self.share)

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch)
        """Of every frame on its own, as if it told all that an image does."""
        shape = torch.Size((*sample_shape, *self.batch_shape))
        right, wrong = (law.expand(shape).sample() for law in (self.law.right, self.law.wrong))
        return torch.where(self.chosen.unsqueeze(-1), right, wrong)

    def log_prob(self, value: Tensor) -> Tensor:
        found = value.to(self.law.loc)
        return self.share * self.law.power * torch.where(self.chosen, self.law.right.log_prob(found), self.law.wrong.log_prob(found))


def _small(images: Tensor) -> Tensor:
    """Images (V, 44, 44) as vectors of fewer pixels, (V, 484)."""
    return avg_pool2d(images.float().unsqueeze(1), images.shape[-1] // SIDE).flatten(1)


def _shifted(values: Tensor, by: int) -> Tensor:
    """Those of so many frames later; at the ends the first or last."""
    return values[(torch.arange(len(values), device=values.device) + by).clamp(0, len(values) - 1)]


def _correlated(evidence: Sequence[Tensor], longest: int = 15) -> Tensor:
    """The integrated autocorrelation time in frames, at least 1, of series around their common mean, up to where the correlation is gone.

    The least hundredth counts as no less than its upper end: a few odd frames of one recording would be most of the variance.
    """
    least = torch.cat(list(evidence)).quantile(0.01)
    kept = [each.clamp_min(least) for each in evidence]
    every = torch.cat(kept)
    centred, time = [each - every.mean() for each in kept], every.new_ones(())
    for lag in range(1, longest + 1):
        pairs = [each[lag:] * each[:-lag] for each in centred if len(each) > lag]
        correlation = torch.cat(pairs).mean() / every.var() if pairs else every.new_zeros(())
        if correlation < 0.05:
            break
        time = time + 2 * correlation
    return time

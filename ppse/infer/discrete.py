"""Exact inference of a discrete Markov chain that is seen through emissions: its evidence, its posterior, draws of its path.

All functions take logarithms and broadcast over leading dims (utterances, chains):

* ``log_initial`` (…, M), log p(m_1);
* ``log_transition`` (…, M, M), log p(m_t = j | m_t-1 = i) at [i, j];
* ``log_emission`` (…, T, M), log p(x_t | m_t), up to a constant per frame where only the posterior is wanted.

Nothing here goes through the frames one by one: products of matrices (and compositions of maps) are associative, so that all prefixes
of a chain take log2 T vectorised steps whose work together is linear in T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Smoothed(NamedTuple):
    """The posterior of a chain given all emissions.

    Attributes:
        marginals: p(m_t = i | x), (…, T, M).
        pairs: p(m_t = i, m_t+1 = j | x), (…, T - 1, M, M).
        log_evidence: log p(x), (…).
    """

    marginals: Tensor
    pairs: Tensor
    log_evidence: Tensor


def log_evidence(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """log p(x), the sum over all paths, (…); differentiable: its slope along ``log_emission`` is the posterior of the chain.

    >>> import torch
    >>> fair, emission = torch.full((2,), 0.5).log(), torch.tensor([[0.2, 0.4], [0.6, 0.2]])
    >>> log_evidence(fair, fair.expand(2, 2), emission.log()).exp()
    tensor(0.1200)
    """
    return filtered(log_initial, log_transition, log_emission)[..., -1]


def filtered(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """log p(x_1, …, x_t) for every t, (…, T). Its differences along t are log p(x_t | x_<t), of the frames one after another."""
    forward, level = _forward(log_initial, log_transition, log_emission)
    return forward.logsumexp(-1) + level.squeeze(-1).cumsum(-1)


def forward_backward(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Smoothed:
    """The posterior of the chain: marginals, marginals of neighbours, evidence. Nothing is random.

    References:
        Rabiner (1989), A tutorial on hidden Markov models; Särkkä & García-Fernández (2021), Temporal parallelization of Bayesian
        smoothers, for prefixes in logarithmic depth.

    >>> import torch
    >>> fair, emission = torch.full((2,), 0.5).log(), torch.tensor([[0.2, 0.4], [0.6, 0.2]])
    >>> forward_backward(fair, fair.expand(2, 2), emission.log()).marginals
    tensor([[0.3333, 0.6667],
            [0.7500, 0.2500]])
    """
    forward, level = _forward(log_initial, log_transition, log_emission)
    emission = log_emission - level
    # What is to come, from the end back: the same products, of transposed matrices in the other order.
    steps = _steps(log_transition, emission)
    suffixes = _scan(_product, steps.mT.flip(-3)).flip(-3).mT if steps.shape[-3] else steps
    backward = torch.cat([suffixes.logsumexp(-1), torch.zeros_like(forward[..., -1:, :])], -2)
    marginals = (forward + backward).softmax(-1)
    pairs = forward[..., :-1, :, None] + steps + backward[..., 1:, None, :]
    return Smoothed(marginals, pairs.flatten(-2).softmax(-1).reshape(pairs.shape), forward[..., -1, :].logsumexp(-1) + level.sum((-2, -1)))


def sample_path(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """A path drawn from the posterior of the chain, (…, T) whole numbers from 0 to M - 1. Random from the global generator.

    Forward filtering, backward sampling: m_T from the last filtered law, then every m_t given m_t+1. As m_t+1 is not known yet
    when all frames are drawn together, m_t is drawn for each value that it may have; these maps are then composed from the end.

    References:
        Carter & Kohn (1994), On Gibbs sampling for state space models; Frühwirth-Schnatter (1994).
    """
    forward, _ = _forward(log_initial, log_transition, log_emission)
    last = _draw(forward[..., -1, :])
    # [t, j, i]: log p(m_t = i | x_1:t, m_t+1 = j), up to a constant
    maps = _draw(forward[..., :-1, None, :] + log_transition.unsqueeze(-3).mT)
    if not maps.shape[-2]:
        return last.unsqueeze(-1)
    composed = _scan(lambda later, now: now.gather(-1, later), maps.flip(-2), dim=-2).flip(-2)
    earlier = composed.gather(-1, last[..., None, None].expand(*composed.shape[:-1], 1)).squeeze(-1)
    return torch.cat([earlier, last.unsqueeze(-1)], -1)


def _forward(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> tuple[Tensor, Tensor]:
    """log p(m_t, x_1:t) (…, T, M) without the levels of the emissions up to t, and these levels, (…, T, 1).

    Sums of log-likelihoods of spectra are so large that single precision would lose what tells the states apart; without the greatest
    log-likelihood of every frame, they are not.
    """
    level = log_emission.detach().amax(-1, keepdim=True)
    level = torch.where(level.isfinite(), level, torch.zeros_like(level))
    emission = log_emission - level
    lead = torch.broadcast_shapes(log_initial.shape[:-1], log_transition.shape[:-2], emission.shape[:-2])
    first = (log_initial + emission[..., 0, :]).expand(*lead, -1)
    steps = _steps(log_transition, emission)
    if not steps.shape[-3]:
        return first.unsqueeze(-2), level
    prefixes = _scan(_product, steps)
    later = _logsumexp(first[..., None, :, None] + prefixes, -2)
    return torch.cat([first.unsqueeze(-2), later], -2), level


def _steps(log_transition: Tensor, emission: Tensor) -> Tensor:
    """log p(m_t = j, x_t | m_t-1 = i) of all frames but the first, (…, T - 1, M, M)."""
    return log_transition.unsqueeze(-3) + emission[..., 1:, None, :]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices of which a and b are logarithms, as one."""
    return _logsumexp(a.unsqueeze(-1) + b.unsqueeze(-3), -2)


def _logsumexp(value: Tensor, dim: int) -> Tensor:
    """log of the sum of exponentials; where all are impossible it is -inf, with a slope of 0 and not NaN."""
    impossible = (value == -torch.inf).all(dim, keepdim=True)
    total = value.masked_fill(impossible, 0.0).logsumexp(dim)
    return total.masked_fill(impossible.squeeze(dim), -torch.inf)


def _scan(combine: Callable[[Tensor, Tensor], Tensor], elements: Tensor, dim: int = -3) -> Tensor:
    """All prefixes e_1, e_1 e_2, e_1 e_2 e_3, … along a dim, of an associative ``combine``: half of them from the products of pairs.

    References:
        Blelloch (1990), Prefix sums and their applications.
    """
    count = elements.shape[dim]
    if count == 1:
        return elements
    half = count // 2
    at_even = _every_second(elements, dim, 0)
    odd = _scan(combine, combine(at_even.narrow(dim, 0, half), _every_second(elements, dim, 1)), dim)
    rest = at_even.shape[dim] - 1
    parts = [at_even.narrow(dim, 0, 1)]
    if rest:
        parts.append(combine(odd.narrow(dim, 0, rest), at_even.narrow(dim, 1, rest)))
    even = torch.cat(parts, dim)
    woven = torch.stack([even.narrow(dim, 0, half), odd], elements.dim() + dim + 1).flatten(elements.dim() + dim, elements.dim() + dim + 1)
    return woven if count % 2 == 0 else torch.cat([woven, even.narrow(dim, half, 1)], dim)


def _every_second(value: Tensor, dim: int, first: int) -> Tensor:
    return value.movedim(dim, 0)[first::2].movedim(0, dim)


def _draw(logits: Tensor) -> Tensor:
    """A draw from each of the laws over the last dim whose logarithms, up to a constant, are given: the place of the largest after Gumbel noise."""
    uniform = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    return (logits - (-uniform.log()).log()).argmax(-1)

"""Both ways between our kernels and Pyro's: NUTS on our densities, and our kernels under ``pyro.infer.MCMC``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel

from .density import CHAINS_DIM, LogDensity, Position, log_density
from .kernels import Info, Kernel, State, _without_gradient, combined
from .run import Draws, collected, sample


def nuts(
    model: Callable[..., Any], *args: Any, num_samples: int, warmup: int, chains: int = 1, start: Position | None = None,
    target_acceptance: float = 0.8, max_tree_depth: int = 10, temperature: float = 1.0, likelihood_power: float = 1.0,
    callback: Callable[[int, int, Info], None] | None = None, **kwargs: Any,
) -> Draws:
    """The No-U-Turn sampler of Pyro on the density of a model: the reference that needs no tuning. Random from the global generator.

    Chains run one after another, each with a step size and a diagonal mass of its own. NUTS accepts, and stops, for the
    whole model at once, so that on hundreds of frames it takes far shorter steps than kernels that accept frame by frame.
    The stats are those of the whole model: acceptance as adapted to; accepted where the chain moved; divergent where the
    trajectory ended so; and the energy that the trajectory started with, which it keeps but for the error of integration.

    Args:
        model, args, kwargs, temperature, likelihood_power: as for :func:`log_density`.
        num_samples, warmup: draws to keep and steps to adapt, per chain.
        start: unconstrained position of all chains, e.g. ``log_density(model, …, chains=chains).init(…)``; from the prior otherwise.
        target_acceptance, max_tree_depth: of Pyro's NUTS.
        callback: called with (chain, step, info) after every step.

    Returns:
        draws as of :func:`sample`; their ``state`` has the last positions alone.

    Raises:
        ValueError: when a number is not positive, or the density at a start is not finite.

    References:
        Hoffman & Gelman (2014), The No-U-Turn sampler; Betancourt (2017), A conceptual introduction to Hamiltonian Monte Carlo.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))
    >>> draws = nuts(model, num_samples=10, warmup=10, chains=2)
    >>> tuple(draws.values["z"].shape), tuple(draws.stats.acceptance.shape)
    ((10, 2, 3), (10, 2, 1))
    """
    if chains < 1:
        raise ValueError(f"nuts: chains={chains}; expected at least one")
    target = log_density(model, *args, block=(), temperature=temperature, likelihood_power=likelihood_power, **kwargs)
    runs = []
    for chain in range(chains):
        kernel = _nuts_chain(target, warmup, target_acceptance, max_tree_depth)
        own = target.init() if start is None else {k: v.narrow(target.chains_dim(k), chain, 1) for k, v in start.items()}

        def told(step: int, _: State, info: Info, chain: int = chain) -> None:
            if callback:
                callback(chain, step, info)

        runs.append(sample(target, kernel, own, num_samples, warmup=warmup, callback=told))

    values = {name: torch.cat([run.values[name] for run in runs], target.chains_dim(name)) for name in target.sites}
    last = {name: torch.cat([run.state.position[name] for run in runs if run.state], target.chains_dim(name)) for name in target.sites}
    stats = combined([run.stats for run in runs if isinstance(run.stats, Info)], lambda fields: torch.cat(fields, CHAINS_DIM))
    return runs[0]._replace(values=values, stats=stats, state=State(last, None, None))


def _nuts_chain(target: LogDensity, warmup: int, target_acceptance: float, max_tree_depth: int) -> Kernel:
    """One chain of Pyro's NUTS as a kernel. It adapts in its first ``warmup`` steps and so is good for one run."""
    inner = NUTS(
        potential_fn=lambda position: -target(position).sum(), target_accept_prob=target_acceptance, max_tree_depth=max_tree_depth,
    )
    # What Pyro tells of single steps lies in private attributes, and the momenta in sites of these names.
    move = poutine.trace(poutine.block(inner.sample, expose_fn=lambda site: site["name"].startswith("r_t=")))
    done = 0

    def init(position: Position) -> State:
        state = _without_gradient(target, position)
        assert state.log_density is not None
        if not bool(state.log_density.isfinite().all()):
            raise ValueError("nuts: the log density at the start of a chain is not finite; start elsewhere, e.g. from an estimate")
        inner.initial_params = state.position
        with torch.enable_grad(), pyro.validation_enabled(False):
            inner.setup(warmup)
        return state

    def step(state: State) -> tuple[State, Info]:
        nonlocal done
        before, diverged = inner._mean_accept_prob, len(inner._divergences)
        with torch.enable_grad(), pyro.validation_enabled(False):
            trace: Any = move.get_trace(state.position)
        new = _without_gradient(target, trace.nodes["_RETURN"]["value"])
        assert state.log_density is not None and new.log_density is not None
        done += 1
        n = done if done <= warmup else done - warmup  # Pyro keeps a running mean of the acceptance, anew after warm-up
        momenta = [site["value"] for name, site in trace.nodes.items() if name.startswith("r_t=")]
        kinetic = torch.stack([0.5 * r.square().sum() for r in momenta]).sum()
        moved = any(not torch.equal(new.position[k], v) for k, v in state.position.items())
        like = torch.ones_like(new.log_density)
        return new, Info(
            (like * (n * inner._mean_accept_prob - (n - 1) * before)).clamp(0.0, 1.0), like.bool() & moved, new.log_density,
            like.bool() & (len(inner._divergences) > diverged), like * (kinetic - state.log_density.sum()), step_size=like * inner.step_size,
        )

    return Kernel(init, step)


class PyroKernel(MCMCKernel):
    """One of our kernels as a kernel of Pyro, to be run by ``pyro.infer.MCMC``. Random from the global generator.

    Several chains in the plate of chains are one chain to Pyro, and to ``az.from_pyro``, whose R-hat would then be of little
    use: :meth:`draws` has them apart. With ``chains=1`` Pyro counts the chains itself (``MCMC(num_chains=4)``).

    Args:
        model: any plated Pyro model; its arguments go to ``MCMC.run``.
        kernel: makes the kernel, e.g. ``lambda target: mala(target, 0.1)``. Step sizes are found beforehand, see :func:`warm_up`;
            the warm-up steps of MCMC are steps that are not kept.
        chains: that run side by side.
        options: of :func:`log_density`.

    >>> import pyro.distributions as dist
    >>> from ppse.infer import mala
    >>> def model(x):
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> kernel = PyroKernel(model, lambda target: mala(target, 0.3), chains=4)
    >>> mcmc = MCMC(kernel, num_samples=10, warmup_steps=5, disable_progbar=True)
    >>> mcmc.run(torch.ones(3))
    >>> tuple(kernel.draws(mcmc).values["z"].shape)
    (10, 4, 3)
    """

    def __init__(self, model: Callable[..., Any], kernel: Callable[[LogDensity], Kernel], chains: int = 1, **options: Any) -> None:
        self.model, self._make, self._chains, self._options = model, kernel, chains, options
        self.transforms: dict[str, Any] | None = None
        self._start: Position | None = None

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Start a chain on these arguments of the model."""
        self._target = log_density(self.model, *args, chains=self._chains, **self._options, **kwargs)
        self.transforms = {name: transform.inv for name, transform in self._target.transforms.items()}
        self._kernel = self._make(self._target)
        self._state = self._kernel.init(self._target.init() if self._start is None else self._start)
        self._warmup, self._infos = warmup_steps, []  # type: int, list[Info]

    @property
    def initial_params(self) -> Position:
        """Unconstrained start of the chains, from the prior unless it was set."""
        return self._state.position

    @initial_params.setter
    def initial_params(self, params: Position) -> None:
        self._start = params

    def sample(self, params: Position) -> Position:
        """One step, on from where the last one ended, or from the given position if that is another one."""
        if any(params[name] is not value for name, value in self._state.position.items()):
            self._state = self._kernel.init(params)
        self._state, info = self._kernel.step(self._state)
        self._infos.append(info)
        return dict(self._state.position)

    def cleanup(self) -> None:
        """Forget a start that was set, as it was for one chain. What :meth:`draws` needs stays until the next setup."""
        self._start = None

    def logging(self) -> dict[str, str]:
        """For the progress bar: the mean acceptance of the last step."""
        return {"acc. prob": f"{self._infos[-1].acceptance.mean():.3f}"}

    def diagnostics(self) -> dict[str, Any]:
        """Draws in which any block of any chain was divergent, and the mean acceptance."""
        kept = self._infos[self._warmup :]
        return {
            "divergences": [i for i, info in enumerate(kept) if bool(info.divergent.any())],
            "acceptance rate": torch.stack([info.acceptance.mean() for info in kept]).mean().item(),
        }

    def draws(self, mcmc: MCMC) -> Draws:
        """The draws of a finished run with its chains apart, as :func:`sample` gives them; for ``to_arviz``.

        Raises:
            ValueError: when Pyro ran several chains; their draws are ``mcmc.get_samples(group_by_chain=True)``.
        """
        if mcmc.num_chains != 1:
            raise ValueError(f"PyroKernel.draws: Pyro ran {mcmc.num_chains} chains; expected 1, and PyroKernel(…, chains=4) for four side by side")
        return collected(self._target, mcmc.get_samples(), self._infos[self._warmup :], self._state)

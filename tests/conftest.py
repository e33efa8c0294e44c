"""Every test starts from the same seed and empty parameter store, and leaves the global settings as it found them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pyro
import pytest
import torch

import ppse  # noqa: F401  (changes a setting of Pyro once, on import)

with warnings.catch_warnings():  # once a day, importing it announces its next major version; tests turn warnings into errors
    warnings.simplefilter("ignore", FutureWarning)
    import arviz  # noqa: F401  (for the warning alone)


def _settings() -> dict[str, object]:
    return {
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": torch.get_default_device(),
        "torch gradients enabled": torch.is_grad_enabled(),
        "torch distribution validation": torch.distributions.Distribution._validate_args,
        "torch threads": torch.get_num_threads(),
        "pyro validation": pyro.infer.util.is_validation_enabled(),
        "pyro handlers": len(pyro.poutine.runtime._PYRO_STACK),
    } | {f"pyro.settings {name}": value for name, value in pyro.settings.get().items()}


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    """Fixed seed, no parameters, and a failure when the test changed a global setting."""
    pyro.set_rng_seed(20_240_501)
    pyro.clear_param_store()
    before = _settings()
    yield
    after = _settings()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, f"the test changed global settings (before, after): {changed}"

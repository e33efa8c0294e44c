"""Speech enhancement by inverting generative models: sources add, the mixture is observed, inference does the rest."""

import pyro

# Modules own their parameters; without this two NMF instances would share one "W" through Pyro's global store.
pyro.settings.set(module_local_params=True)

from .diagnostics import Verdict, verdict  # noqa: E402  (after the setting)
from .distributions import ComplexNormal  # noqa: E402  (after the setting)
from .enhance import Enhancement, enhance  # noqa: E402  (after the setting)
from .extension import Extension, extend  # noqa: E402  (after the setting)
from .inference_data import to_arviz  # noqa: E402  (after the setting)
from .inpainting import Inpainting, inpaint  # noqa: E402  (after the setting)
from .mixture import Mixture, Source, posterior  # noqa: E402  (after the setting)
from .priors import with_priors  # noqa: E402  (after the setting)
from .stft import STFT  # noqa: E402  (after the setting)
from .together import enhance_together  # noqa: E402  (after the setting)

__version__ = "0.1.0"
__all__ = [
    "STFT", "ComplexNormal", "Enhancement", "Extension", "Inpainting", "Mixture", "Source", "Verdict",
    "enhance", "enhance_together", "extend", "inpaint", "posterior", "to_arviz", "verdict", "with_priors", "__version__",
]

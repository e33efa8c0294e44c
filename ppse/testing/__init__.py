"""Contract checks for people who write a source or a kernel, statistical checks of draws, and simulation-based calibration.

Each check raises an ``AssertionError`` that says what is wrong; a source or kernel that passes can be used
with everything else in the package. For use in tests, not in inference.
"""

from .calibration import Calibration, Sampler, around_truth, assert_calibrated, calibrate
from .draws import assert_moments
from .kernels import KernelFactory, check_kernel
from .ranks import plot_ranks, uniformity
from .sources import check_source
from .state_space import Smoothed, StateSpace, kalman_smoother

__all__ = [
    "Calibration", "KernelFactory", "Sampler", "Smoothed", "StateSpace", "around_truth", "assert_calibrated", "assert_moments", "calibrate",
    "check_kernel", "check_source", "kalman_smoother", "plot_ranks", "uniformity",
]

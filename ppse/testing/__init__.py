"""Contract checks for people who write a source or a kernel, and a statistical check of draws.

Each check raises an ``AssertionError`` that says what is wrong; a source or kernel that passes can be used
with everything else in the package. For use in tests, not in inference.
"""

from .draws import assert_moments
from .kernels import KernelFactory, check_kernel
from .sources import check_source

__all__ = ["KernelFactory", "assert_moments", "check_kernel", "check_source"]

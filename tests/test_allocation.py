import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from ppse.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for iteration in range(12):
    if iteration == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [torch.ones(10 << 18) for _ in range(4)]  # of 10 MB each
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _new_pages(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False)
    assert not run.returncode, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks the GNU C library")
def test_freed_memory_is_used_again() -> None:
    assert _new_pages("keep") < _new_pages("as it is") / 5

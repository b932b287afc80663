"""All tests whose roles run in their own process, on the stand-in device (two hours of a core) or another one.

`python -m tests.tools.device_sweep [--device stand-in|cuda] [ARGUMENTS OF PYTEST]`. Left out are two studies, which compare
with tensors of the host.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

PATHS = ("tests/protocols", "tests/models/policies", "tests/models/test_device.py", "tests/mpc/test_messages.py")
LEFT_OUT = (
    "tests/protocols/test_softmax_shift.py",
    "tests/models/policies/test_keeping_everything_on_shares.py",
)


def main(arguments: Sequence[str]) -> int:
    """Return pytest's exit status."""
    device = [] if any(x.startswith("--device") for x in arguments) else ["--device", "stand-in"]
    ignored = [f"--ignore={path}" for path in LEFT_OUT]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *device, *ignored, *PATHS, *arguments], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

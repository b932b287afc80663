"""All tests whose roles run in their own process, on the stand-in device (half an hour) or another one.

`python -m tests.tools.device_sweep [--device stand-in|cuda] [ARGUMENTS OF PYTEST]`. Left out are tests that compare with
tensors of the host without asking where a result lies, or that are about the host itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

PATHS = ("tests/protocols", "tests/models/policies", "tests/models/test_device.py", "tests/mpc/test_messages.py")
LEFT_OUT = (
    "tests/protocols/plain",
    "tests/protocols/masked/test_append_buffer.py",
    "tests/protocols/masked/test_dpf.py",
    "tests/protocols/masked/test_idpf.py",
    "tests/protocols/masked/test_signed_one_hot.py",
    "tests/protocols/masked/test_exponential.py",
    "tests/protocols/crypten",
    "tests/protocols/test_ranges.py",
    "tests/protocols/test_output.py",
    "tests/protocols/test_ranking_rounds.py",
    "tests/protocols/test_tokens.py",
    "tests/protocols/test_truncation_functionality.py",
    "tests/protocols/test_uniformity.py",
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

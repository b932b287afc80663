"""The command line and the library have the same defaults."""

from __future__ import annotations

import parties.client.client
from launch.cli import options
from launch.local.checks import check_suite


def test_default_suite() -> None:
    assert options.DEFAULT_SUITE == parties.client.client.DEFAULT_SUITE
    assert check_suite(options.DEFAULT_SUITE) == options.DEFAULT_SUITE

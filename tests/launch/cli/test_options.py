"""The command line and the library have the same defaults."""

from __future__ import annotations

from launch.cli import options
from launch.local.checks import check_suite
from protocols import registry


def test_default_suite() -> None:
    assert options.DEFAULT_SUITE == registry.DEFAULT_SUITE
    assert check_suite(options.DEFAULT_SUITE) == options.DEFAULT_SUITE

"""The command line and the library have the same defaults."""

from __future__ import annotations

import parties.client
from launch import options


def test_default_suite() -> None:
    assert options.DEFAULT_SUITE == parties.client.DEFAULT_SUITE
    assert options.check_suite(options.DEFAULT_SUITE) == options.DEFAULT_SUITE

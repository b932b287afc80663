"""What a process of `mpcache` does before it looks at its arguments, done once for all that are forked (`tests.forked`)."""

from __future__ import annotations

from launch.cli.main import commands

commands()

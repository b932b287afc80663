"""Checks that take minutes or what a test machine may not have; each is a command, `python -m tests.tools.NAME`."""

"""Masked evaluation: the fast protocol suite. `protocols.masked.suite` is the suite, every other file one gate."""

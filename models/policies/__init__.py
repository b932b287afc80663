"""Cache policies: one file each, written once for all suites; `registry` knows them by name."""

from models.policies.registry import POLICIES, parse

__all__ = ["POLICIES", "parse"]

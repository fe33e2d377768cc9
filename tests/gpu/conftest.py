"""Runs for the tests of this folder."""

from tests.traced_runs import digits, digits_cache

__all__ = ["digits", "digits_cache"]

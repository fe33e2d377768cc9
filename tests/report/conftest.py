"""Runs for the tests of this folder."""

from tests.cli.conftest import tvgrad
from tests.traced_runs import digits, digits_cache, tampered, traced

__all__ = ["digits", "digits_cache", "tampered", "traced", "tvgrad"]

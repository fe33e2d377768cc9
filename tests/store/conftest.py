"""Runs for the tests of this folder."""

from tests.small_runs import _cache, _no_waiting_for_the_disk, bits, forks, make_recipe, traced

__all__ = ["_cache", "_no_waiting_for_the_disk", "bits", "forks", "make_recipe", "traced"]

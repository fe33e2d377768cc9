"""Analyses: each module puts one claim to the test on real data, and says whether it holds."""

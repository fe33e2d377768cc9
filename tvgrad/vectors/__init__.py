"""Vectors in parameter space: names, groups, inner products, and linear combinations in float64."""

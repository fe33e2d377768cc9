"""Smooth activations with bounds on their derivatives."""

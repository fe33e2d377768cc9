"""Rounding: gradients and products together with proven bounds on their floating-point error."""

"""Bounds of the program itself: a model and its loss as one graph, interpreted with rounding and over balls."""

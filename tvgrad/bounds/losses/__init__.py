"""Losses as functions of the logits, with bounds on their derivatives."""

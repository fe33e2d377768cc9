"""Certificates: how far several epochs can take a task vector from a prediction, proved before training."""

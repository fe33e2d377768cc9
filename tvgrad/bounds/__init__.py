"""Bounds that are theorems: upper bounds for feed-forward networks, and certificates made of them.

A *bound* holds always, rounding included; an *estimate* is a number close to the truth, from either side.
"""

from __future__ import annotations

from tvgrad.bounds.activations import Activation, activation_of, register_activation
from tvgrad.bounds.certificate import Certificate
from tvgrad.bounds.derivatives import DerivativeBounds, UniformBounds
from tvgrad.bounds.feedforward import FeedForward
from tvgrad.bounds.forms import Form
from tvgrad.bounds.losses import Loss, loss_of
from tvgrad.bounds.multitask import GapCertificate, multitask_gap
from tvgrad.bounds.plan import NoCertificate
from tvgrad.bounds.reading import UnsupportedNetwork
from tvgrad.bounds.spectral import SpectralNorm, spectral_norm

__all__ = [
    "Activation",
    "Certificate",
    "DerivativeBounds",
    "FeedForward",
    "Form",
    "GapCertificate",
    "Loss",
    "NoCertificate",
    "SpectralNorm",
    "UniformBounds",
    "UnsupportedNetwork",
    "activation_of",
    "loss_of",
    "multitask_gap",
    "register_activation",
    "spectral_norm",
]

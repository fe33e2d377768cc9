"""Bounds that are theorems: upper bounds for feed-forward networks, and certificates made of them.

A *bound* holds always, rounding included; an *estimate* is a number close to the truth, from either side.
"""

from __future__ import annotations

from tvgrad.bounds.activations.registry import activation_of, register_activation
from tvgrad.bounds.activations.smooth import Activation
from tvgrad.bounds.certificates.certificate import Certificate
from tvgrad.bounds.certificates.coefficients import NoCertificate
from tvgrad.bounds.certificates.form import Form
from tvgrad.bounds.certificates.multitask_gap import GapCertificate, multitask_gap, multitask_gap_bound
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.derivatives.uniform_bounds import UniformBounds
from tvgrad.bounds.feedforward import FeedForward
from tvgrad.bounds.losses.base import Loss
from tvgrad.bounds.losses.registry import loss_of
from tvgrad.bounds.network.network import UnsupportedNetwork
from tvgrad.bounds.network.spectral_norm import SpectralNorm, spectral_norm
from tvgrad.bounds.program.operation import UnsupportedProgram
from tvgrad.bounds.program.program import Program

__all__ = [
    "Activation",
    "Certificate",
    "DerivativeBounds",
    "FeedForward",
    "Form",
    "GapCertificate",
    "Loss",
    "NoCertificate",
    "Program",
    "SpectralNorm",
    "UniformBounds",
    "UnsupportedNetwork",
    "UnsupportedProgram",
    "activation_of",
    "loss_of",
    "multitask_gap",
    "multitask_gap_bound",
    "register_activation",
    "spectral_norm",
]

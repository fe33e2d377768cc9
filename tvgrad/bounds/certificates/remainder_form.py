"""The remainder forms of a certificate: the second-order term, up to what third derivatives can add to it.

`g_e - g_0 = H_0 tau_e + r_e` with `||r_e|| <= rho/2 ||tau_e||^2` (the integral of `(1-t) D3[tau, tau]`), and
`tau_e = p_e - sum_j c[e,j] (g_j - g_0)`, so that the error vector is `-H_0 sum_e c[k,e] p_e` up to
`sum_e c[k,e] (h_0 E_e + r_e)`. The path is p_e; the known part of the deviation is `||H_0 sum_j c[e,j] p_j||`.
*Layer-wise*, with d the layer norms of p_e and D3 the layers' third-derivative constants,
`r_e <= 1/2 ( ||D3[., d, d]|| + 2 ||D3[., ., d]||_2 E_e + rho E_e^2 )`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvgrad.bounds.certificates.closed_form import Start
from tvgrad.bounds.certificates.form import CertificateForm, Form
from tvgrad.bounds.certificates.verified_ball import ThirdDerivative, deviation_on_ball


@dataclass(frozen=True)
class RemainderForm(CertificateForm[Start]):
    """The asymptotically exact form, with third derivatives as one number or layer by layer.

    Attributes:
        layerwise: whether to use them layer by layer.
    """

    layerwise: bool

    def attempt(self, case: Start) -> Form:
        """Find the bounds.

        Args:
            case: what is known at theta_0.

        Returns:
            The bounds, from both sides.
        """
        path = [case.first_order(step) for step in range(case.coefficients.steps)]
        *earlier, error = case.second_orders
        norms = np.array([one.upper for one in path])
        layers = case.layer_norms(path) if self.layerwise else None
        rest, radius = deviation_on_ball(
            case,
            norms,
            np.array([one.upper for one in earlier]),
            higher_order=lambda radius: ThirdDerivative(case.problem.local(radius), norms, layers).twice,
        )
        return Form.of_error(self.name, error, rest, radius=radius)

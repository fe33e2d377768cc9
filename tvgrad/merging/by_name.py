"""METHODS: the methods that take nothing but task vectors, by name."""

from __future__ import annotations

from tvgrad.merging.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from tvgrad.merging.centred_clip import CentredClip
from tvgrad.merging.dare import Dare, DareTies
from tvgrad.merging.disentangled import Disentangled
from tvgrad.merging.fed_nova import FedNova
from tvgrad.merging.isotropic import Isotropic
from tvgrad.merging.isotropic_subspaces import IsotropicSubspaces
from tvgrad.merging.knots import Knots
from tvgrad.merging.lines import Lines
from tvgrad.merging.magnitude_prune import MagnitudePrune
from tvgrad.merging.masked_mean import MaskedMean
from tvgrad.merging.median import Median
from tvgrad.merging.meta_gpt import MetaGpt
from tvgrad.merging.method import Method
from tvgrad.merging.model_stock import ModelStock
from tvgrad.merging.slerp import Slerp
from tvgrad.merging.task_arithmetic import Analogy, Mean, Negation, TaskArithmetic
from tvgrad.merging.ties import Ties
from tvgrad.merging.trust_region import TrustRegion
from tvgrad.merging.tsv_c import TsvC
from tvgrad.merging.tsv_m import TsvM
from tvgrad.merging.vector_bases import VectorBases
from tvgrad.merging.wudi import Wudi

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        TaskArithmetic,
        Mean,
        Ties,
        Dare,
        Median,
        TsvM,
        TsvC,
        Isotropic,
        IsotropicSubspaces,
        Knots,
        Wudi,
        ModelStock,
        Breadcrumbs,
        DareTies,
        BreadcrumbsTies,
        MagnitudePrune,
        Lines,
        MetaGpt,
        FedNova,
        CentredClip,
        MaskedMean,
        TrustRegion,
        Disentangled,
        VectorBases,
        Slerp,
        Negation,
        Analogy,
    )
}
"""Name -> method, in the order of a first look."""

"""Merging: from the task vectors of several fine-tuned models to one.

Each function takes a list of task vectors (name -> tensor: `run.task_vector(epoch)`), computes in float64, and
multiplies the merged vector with `alpha`. Without `base` the result is that vector in float64; with `base`, the
pretrained weights, it is the merged weights in the base's dtypes.

`METHODS` holds the same methods by name, as objects that also merge files too large for the memory (`merge_files`).
"""

from tvgrad.merging.ada_merging import AdaMerging
from tvgrad.merging.by_name import METHODS
from tvgrad.merging.checkpoints import MergedFolder, merge_checkpoints
from tvgrad.merging.fed_nova import FedNova
from tvgrad.merging.functions import (
    analogy,
    breadcrumbs,
    dare,
    isotropic,
    mean,
    median,
    model_stock,
    negation,
    task_arithmetic,
    ties,
    tsv_m,
    wudi,
)
from tvgrad.merging.iteration import tune_and_merge
from tvgrad.merging.measured_functions import (
    MEASURED_METHODS,
    fisher,
    gradient_matching,
    measured_meta_gpt,
    measured_trust_region,
    regmean,
)
from tvgrad.merging.measurement_file import load_measurements
from tvgrad.merging.measurements import Measurements
from tvgrad.merging.measuring import measure
from tvgrad.merging.merge import merge_files, merge_vectors
from tvgrad.merging.method import Method
from tvgrad.merging.objective_functions import OBJECTIVE_METHODS, ada_merging, exact_gradient_matching
from tvgrad.merging.sparse_functions import breadcrumbs_ties, dare_ties, magnitude_prune, masked_mean, trust_region
from tvgrad.merging.spectral_functions import isotropic_subspaces, knots, tsv_c
from tvgrad.merging.tsv_m import interference
from tvgrad.merging.weighing_functions import (
    centred_clip,
    disentangled,
    fed_nova,
    lines,
    meta_gpt,
    slerp,
    vector_bases,
)
from tvgrad.merging.wudi import wudi_objective

__all__ = [
    "MEASURED_METHODS",
    "METHODS",
    "OBJECTIVE_METHODS",
    "AdaMerging",
    "FedNova",
    "Measurements",
    "MergedFolder",
    "Method",
    "ada_merging",
    "analogy",
    "breadcrumbs",
    "breadcrumbs_ties",
    "centred_clip",
    "dare",
    "dare_ties",
    "disentangled",
    "exact_gradient_matching",
    "fed_nova",
    "fisher",
    "gradient_matching",
    "interference",
    "isotropic",
    "isotropic_subspaces",
    "knots",
    "lines",
    "load_measurements",
    "magnitude_prune",
    "masked_mean",
    "mean",
    "measure",
    "measured_meta_gpt",
    "measured_trust_region",
    "median",
    "merge_checkpoints",
    "merge_files",
    "merge_vectors",
    "meta_gpt",
    "model_stock",
    "negation",
    "regmean",
    "slerp",
    "task_arithmetic",
    "ties",
    "trust_region",
    "tsv_c",
    "tsv_m",
    "tune_and_merge",
    "vector_bases",
    "wudi",
    "wudi_objective",
]

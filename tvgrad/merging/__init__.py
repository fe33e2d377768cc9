"""Merging: from the task vectors of several fine-tuned models to one.

Each function takes a list of task vectors (name -> tensor: `run.task_vector(epoch)`), computes in float64, and
multiplies the merged vector with `alpha`. Without `base` the result is that vector in float64; with `base`, the
pretrained weights, it is the merged weights in the base's dtypes.

`METHODS` holds the same methods by name, as objects that also merge files too large for the memory (`merge_files`).
"""

from tvgrad.merging.checkpoints import MergedFolder, merge_checkpoints
from tvgrad.merging.functions import (
    METHODS,
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
from tvgrad.merging.measured_functions import MEASURED_METHODS, fisher, gradient_matching, regmean
from tvgrad.merging.measurements import Measurements, load_measurements, measure
from tvgrad.merging.merge import merge_files, merge_vectors
from tvgrad.merging.method import Method
from tvgrad.merging.tsv_m import interference
from tvgrad.merging.wudi import wudi_objective

__all__ = [
    "MEASURED_METHODS",
    "METHODS",
    "Measurements",
    "MergedFolder",
    "Method",
    "analogy",
    "breadcrumbs",
    "dare",
    "fisher",
    "gradient_matching",
    "interference",
    "isotropic",
    "load_measurements",
    "mean",
    "measure",
    "median",
    "merge_checkpoints",
    "merge_files",
    "merge_vectors",
    "model_stock",
    "negation",
    "regmean",
    "task_arithmetic",
    "ties",
    "tsv_m",
    "tune_and_merge",
    "wudi",
    "wudi_objective",
]

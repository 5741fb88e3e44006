"""Honest statistics for comparisons: paired bootstrap and permutation tests, clusters, Holm, power, judge quality."""

from __future__ import annotations

from alignlab.stats.classification import (
    Classification,
    classify,
    cohen_kappa,
    corrected_prevalence,
    rogan_gladen,
)
from alignlab.stats.cluster import clustered_interval, clustered_standard_error, design_effect, standard_error
from alignlab.stats.interval import Interval, wilson
from alignlab.stats.multiplicity import holm, holm_correct
from alignlab.stats.paired import (
    Comparison,
    bootstrap_mean,
    compare,
    mean_interval,
    paired_bootstrap,
    permutation_test,
)
from alignlab.stats.power import minimum_detectable_effect, paired_power, paired_sd, required_n

__all__ = [
    "Classification",
    "Comparison",
    "Interval",
    "bootstrap_mean",
    "classify",
    "clustered_interval",
    "clustered_standard_error",
    "cohen_kappa",
    "compare",
    "corrected_prevalence",
    "design_effect",
    "holm",
    "holm_correct",
    "mean_interval",
    "minimum_detectable_effect",
    "paired_bootstrap",
    "paired_power",
    "paired_sd",
    "permutation_test",
    "required_n",
    "rogan_gladen",
    "standard_error",
    "wilson",
]

"""Honest statistics: paired comparisons, clusters, Holm, power over items and seeds, judges, calibration."""

from __future__ import annotations

from alignlab.stats.agreement import kappa_interval, lean_difference, lean_interval
from alignlab.stats.calibration import (
    BrierDecomposition,
    CalibrationError,
    ReliabilityBin,
    brier_decomposition,
    brier_score,
    expected_calibration_error,
    reliability_table,
)
from alignlab.stats.calibration_maps import (
    Isotonic,
    StatedTemperature,
    Temperature,
    cross_fitted,
    fit_isotonic,
    fit_stated_temperature,
    fit_temperature,
    negative_log_likelihood,
)
from alignlab.stats.classification import (
    Classification,
    classify,
    cohen_kappa,
    rogan_gladen,
)
from alignlab.stats.cluster import clustered_interval, clustered_standard_error, design_effect, standard_error
from alignlab.stats.conformal import ConformalClassifier, SetQuality, conformal_limit, fit_conformal, set_quality
from alignlab.stats.crossed import crossed_interval, estimate_noise, intraclass_correlation
from alignlab.stats.dawid_skene import fit_dawid_skene
from alignlab.stats.design import (
    Design,
    Noise,
    binary_difference_sd,
    design_power,
    design_standard_error,
    detectable_effect,
    kish_design_effect,
    required_items,
    required_seeds,
)
from alignlab.stats.elo import elo_intervals, elo_ratings
from alignlab.stats.interval import Interval, wilson
from alignlab.stats.judge_correction import (
    Labelled,
    corrected_difference,
    corrected_prevalence,
    prediction_powered_mean,
    with_unscorable,
)
from alignlab.stats.multiplicity import holm, holm_correct
from alignlab.stats.next_pair import expected_information, next_pairs
from alignlab.stats.paired import (
    Comparison,
    bootstrap_mean,
    compare,
    mean_interval,
    paired_bootstrap,
    permutation_test,
)
from alignlab.stats.paired_ranking import Ranking, fit_ranking
from alignlab.stats.pareto import contributions, hypervolume, non_dominated
from alignlab.stats.pareto_choice import best_for_weights, under_bounds
from alignlab.stats.pareto_resampling import covered_volume, on_front_share, volume_difference
from alignlab.stats.pareto_table import (
    PointTable,
    dominance,
    dominated_with_confidence,
    objective_intervals,
    point_table,
)
from alignlab.stats.power import minimum_detectable_effect, paired_power, paired_sd, required_n
from alignlab.stats.raters import fleiss_kappa, krippendorff_alpha, pairwise_kappas, summarise_agreement
from alignlab.stats.rating_table import RatingTable, rating_rows, rating_table
from alignlab.stats.selective import (
    RiskCoverage,
    area_under_risk_coverage,
    certainty_auroc,
    optimal_aurc,
    risk_coverage,
    threshold_for_risk,
)
from alignlab.stats.semantic_entropy import cluster_by_meaning, meaning_probabilities, semantic_entropy
from alignlab.stats.variance_parts import VarianceParts, variance_parts

__all__ = [
    "BrierDecomposition",
    "CalibrationError",
    "Classification",
    "Comparison",
    "ConformalClassifier",
    "Design",
    "Interval",
    "Isotonic",
    "Labelled",
    "Noise",
    "PointTable",
    "Ranking",
    "RatingTable",
    "ReliabilityBin",
    "RiskCoverage",
    "SetQuality",
    "StatedTemperature",
    "Temperature",
    "VarianceParts",
    "area_under_risk_coverage",
    "best_for_weights",
    "binary_difference_sd",
    "bootstrap_mean",
    "brier_decomposition",
    "brier_score",
    "certainty_auroc",
    "classify",
    "cluster_by_meaning",
    "clustered_interval",
    "clustered_standard_error",
    "cohen_kappa",
    "compare",
    "conformal_limit",
    "contributions",
    "corrected_difference",
    "corrected_prevalence",
    "covered_volume",
    "cross_fitted",
    "crossed_interval",
    "design_effect",
    "design_power",
    "design_standard_error",
    "detectable_effect",
    "dominance",
    "dominated_with_confidence",
    "elo_intervals",
    "elo_ratings",
    "estimate_noise",
    "expected_calibration_error",
    "expected_information",
    "fit_conformal",
    "fit_dawid_skene",
    "fit_isotonic",
    "fit_ranking",
    "fit_stated_temperature",
    "fit_temperature",
    "fleiss_kappa",
    "holm",
    "holm_correct",
    "hypervolume",
    "intraclass_correlation",
    "kappa_interval",
    "kish_design_effect",
    "krippendorff_alpha",
    "lean_difference",
    "lean_interval",
    "mean_interval",
    "meaning_probabilities",
    "minimum_detectable_effect",
    "negative_log_likelihood",
    "next_pairs",
    "non_dominated",
    "objective_intervals",
    "on_front_share",
    "optimal_aurc",
    "paired_bootstrap",
    "paired_power",
    "paired_sd",
    "pairwise_kappas",
    "permutation_test",
    "point_table",
    "prediction_powered_mean",
    "rating_rows",
    "rating_table",
    "reliability_table",
    "required_items",
    "required_n",
    "required_seeds",
    "risk_coverage",
    "rogan_gladen",
    "semantic_entropy",
    "set_quality",
    "standard_error",
    "summarise_agreement",
    "threshold_for_risk",
    "under_bounds",
    "variance_parts",
    "volume_difference",
    "wilson",
    "with_unscorable",
]

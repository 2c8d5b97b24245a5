"""Intervals, tests and trends over seeds, looks while seeds are added, summaries over cases, power, grids.

Every seed is one independent observation, so average over examples or epochs first. Intervals are two-sided at 95 % by default.

>>> from jaxbp import stats
>>> gain = stats.t_interval([0.4, 0.7, 0.5, 0.9, 0.6])
>>> print(f"{gain.estimate:.2f} in [{gain.low:.3f}, {gain.high:.3f}], {gain.num_seeds} seeds")
0.62 in [0.381, 0.859], 5 seeds
"""

from jaxbp.stats.anova import Component, functional_anova
from jaxbp.stats.anytime import anytime_event_interval, anytime_t_interval, event_e_value, t_e_value
from jaxbp.stats.boundaries import Boundary, boundary
from jaxbp.stats.comparisons import Alternative, holm, kendall, p_value, paired_difference, slopes, trend
from jaxbp.stats.intervals import (
    bootstrap_interval,
    event_interval,
    mean_interval,
    median_interval,
    proportion_interval,
    sign_flip_interval,
    t_interval,
    wilson_interval,
)
from jaxbp.stats.looks import Looks, chance_of_deciding
from jaxbp.stats.meta_analysis import RandomEffects, random_effects, random_effects_of_shares
from jaxbp.stats.power import chance_inside, event_chance_inside, seeds_needed
from jaxbp.stats.sample import CONFIDENCE, Interval, IntervalFn, SampleError, numbers

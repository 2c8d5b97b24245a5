"""Figures and tables of a study, and the one HTML page that carries them.

The page is a single file: figures are embedded, there is no script, and no font or other resource is fetched. It fits a
phone, a dark screen, paper, a keyboard and a screen reader. Verdicts come first, each with its interval drawn against the region in which
the claim holds; then each study's figures and tables, its settings, and what to type to repeat it.

A study declares its figures (`SeedStrip`, `SeedCurves`, `SeedScatter`, `StackedBars`, `CustomFigure`) and tables (`MeanTable`,
`CustomTable`); `build_sections` draws them from a finished run. `figure`, `strip`, `curve` and `save_figure` are there for drawings of
one's own, and `write_map_page` for a `jaxbp.claims.ClaimMap`.

>>> from jaxbp import report, stats
>>> report.format_interval(stats.t_interval([0.931, 0.934, 0.929, 0.937]))
'0.9328 [0.9272, 0.9383]'
"""

from jaxbp.report.blocks import MAX_SVG_BYTES, Picture, Section, Table, cell_text, geometric_mean_cell, mean_cell
from jaxbp.report.citation import Publication
from jaxbp.report.claim_measures import ClaimMeans, ClaimStrips, claim_pictures, claim_table
from jaxbp.report.declared_bars import StackedBars
from jaxbp.report.declared_figures import CASES, CustomFigure, SeedCurves, SeedStrip, slope_guide
from jaxbp.report.declared_scatter import SeedScatter
from jaxbp.report.declared_tables import CustomTable, MeanTable
from jaxbp.report.figures import PALETTE, curve, figure, label_log_axis, panels, save_figure, strip, style
from jaxbp.report.labelled_values import split
from jaxbp.report.map_page import write_map_page
from jaxbp.report.outcomes import beside_paper, tally
from jaxbp.report.page import StudySection, write_page
from jaxbp.report.study_sections import build_sections, draw_figures
from jaxbp.report.text import format_interval, format_number

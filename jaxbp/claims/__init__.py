"""Claims, the rules that turn intervals into verdicts, premises, controls, and verdicts.json.

A claim names a measure and a `Rule`, an open region in which the measure must lie; seeds give a `jaxbp.stats.Interval` for it in every
case. A case is *supported* by an interval inside the region, *contradicted* by one wholly outside, *undecided* otherwise, and *not tested*
where a premise of the claim is not supported. A claim is *supported* if every tested case is, *contradicted* if some case is and none is
supported, *mixed* if some cases are each, and otherwise *undecided* or *not tested*. "No difference" is a region around zero
(`Within`) and must be shown: a test without significance shows nothing. An interval that only touches an end of the region decides
nothing. Intervals are two-sided at 95 %: a one-sided rule errs in at most 2.5 % of runs. Claims are independent of each other; for tests
that must hold together see `jaxbp.stats.holm`.

>>> from jaxbp import claims
>>> claim = claims.Claim("S2.a", "Weight decay beats none.", "Table 2", "gain", claims.Above(0.0), 0.6, smallest_effect=0.5)
>>> verdict = claims.judge(claim, {"digits/mlp": [0.4, 0.7, 0.5, 0.9, 0.6]})
>>> print(verdict.verdict, f"{verdict.interval.low:.3f} {verdict.interval.high:.3f}")
supported 0.381 0.859
>>> print(f"{verdict.power.chance:.2f}")  # of finding an effect of 0.5 with five seeds of this spread
0.99
>>> claims.judge(claim, {"mlp": [0.4, 0.7, 0.5, 0.9, 0.6], "convnet": [-0.4, -0.7, -0.5, -0.9, -0.6]}).headline
'mixed: supported in 1 of 2 cases, contradicted in 1'
"""

from jaxbp.claims.claim import CLEAR_MAJORITY, Claim, Premise
from jaxbp.claims.claim_map import AlongAxis, Axis, ClaimMap, MapCell, Specification
from jaxbp.claims.controls import Control, ControlVerdict, judge_control
from jaxbp.claims.files import VerdictFileError, read_controls, read_verdicts, write_verdicts
from jaxbp.claims.judging import judge
from jaxbp.claims.premises import judge_all
from jaxbp.claims.rules import Above, Below, Decision, Rule, Within
from jaxbp.claims.verdicts import CaseVerdict, Outcome, Power, Verdict

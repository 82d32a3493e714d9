"""Studies: arms x seeds of ordinary runs, hypotheses registered beforehand, and verdicts on them."""

from rl_llm.studies.hypothesis import Hypothesis
from rl_llm.studies.metric import AtTokens, Drop, Final, Last, Speed
from rl_llm.studies.study import Study

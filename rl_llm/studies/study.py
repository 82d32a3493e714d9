"""A study is a value: arms, the policies that they begin with, and what is expected of them, all written down before.

A module of experiments names its studies in `STUDY`, by scale; one that has an `ABLATION` alone is a study without
hypotheses.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from rl_llm import config
from rl_llm.algorithms import REINFORCE
from rl_llm.config import ExperimentError, load_module
from rl_llm.experiment import Curriculum, Evaluation, Experiment
from rl_llm.learner.optimizer import AdamW
from rl_llm.rewards.components import Reward
from rl_llm.studies.hypothesis import Hypothesis

SCALES = ("smoke", "cpu", "paper")
_FILE_NAME = re.compile(r"[A-Za-z0-9_.=+-]+")


@dataclass(frozen=True)
class Study:
    """Arms x seeds. The arms of a seed are paired: the same problems in the same order, the same noise.

    An arm whose `start` is a name in `starts` begins with the policy of that run, made once for each seed: give it
    there as an experiment with a warm start, whose steps of RL are left out. The hypotheses are one family: their
    p-values are corrected together. `seeds` are the least number that is run.
    """

    title: str
    arms: Mapping[str, Experiment]
    hypotheses: tuple[Hypothesis, ...] = ()
    starts: Mapping[str, Experiment] = field(default_factory=dict)
    seeds: int = 5

    def __post_init__(self) -> None:
        if not self.arms or self.seeds < 1:
            raise ValueError(f"the study {self.title!r} needs an arm and a seed, not {list(self.arms)}, {self.seeds}")
        for name in sorted(set(self.arms) & set(self.starts)):
            raise ValueError(f"{name!r} is the name of an arm and of a start: choose another for one of them")
        for name in (*self.arms, *self.starts):
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is to be the name of a folder: write letters, digits and any of _.=+-")
        for name, start in self.starts.items():
            if start.warm_start is None:
                raise ValueError(f"starts[{name!r}] has no warm_start: there is nothing to begin with")
        for hypothesis in self.hypotheses:
            for arm in (hypothesis.treatment, hypothesis.control):
                if arm not in self.arms:
                    raise ValueError(f"{hypothesis.claim!r} is about an arm {arm!r}; there are {', '.join(self.arms)}")
        unused = sorted(set(self.starts) - {arm.start for arm in self.arms.values()})
        if unused:
            raise ValueError(f"no arm begins with starts {', '.join(map(repr, unused))}: set its start to the name")

    @property
    def experiments(self) -> dict[str, Experiment]:
        """All that is run, by name: the arms, and the starts with their warm start alone."""
        return {**self.arms, **{name: only_warm_start(start) for name, start in self.starts.items()}}

    def with_budget(self, tokens: int) -> "Study":
        """The same with every arm ending at so many generated tokens."""
        return replace(self, arms={name: replace(arm, token_budget=tokens) for name, arm in self.arms.items()})

    def registered(self) -> dict[str, Any]:
        """JSON of what is fixed before the first run. Its `sha256` names the study: seeds may be added to it."""
        content = {
            "title": self.title,
            "hypotheses": config.to_json(self.hypotheses),
            "arms": {name: config.fingerprint(arm) for name, arm in self.arms.items()},
            "starts": {name: config.fingerprint(start) for name, start in self.starts.items()},
        }
        return {**content, "sha256": config.fingerprint(content)}


def only_warm_start(experiment: Experiment) -> Experiment:
    """An experiment that ends with its warm start: one step of RL that changes nothing is left."""
    return replace(
        experiment,
        algorithm=REINFORCE,
        optimizer=AdamW(0.0),
        steps=1,
        token_budget=None,
        updates_per_rollout=1,
        staleness=0,
        replay=None,
        dynamic_sampling=None,
        curriculum=Curriculum(),
        critic=None,
        reference=None,
        teacher=None,
        reward_model=None,
        mixture=None,
        responses=None,
        reward=Reward(),
        evaluation=Evaluation(problems=experiment.prompts_per_step),
        sampler_mesh=None,
    )


def load_study(path: str, scale: str) -> tuple[Study, str]:
    """The study of a Python file at a scale, and what stands before the name of an arm in the spec of its experiment.
    Raises ExperimentError where there is none.
    """
    module = load_module(path)
    at_scales = getattr(module, "STUDY", None)
    if at_scales is None:
        return _of_ablation(module, path, scale), f"{path}:"
    if not isinstance(at_scales, Mapping):
        raise ExperimentError(
            f"{path}: STUDY is of type {type(at_scales).__name__}: give studies by scale, {{'cpu': Study(...)}}"
        )
    if scale not in at_scales:
        raise ExperimentError(f"{path} has no scale {scale!r}; it has {', '.join(at_scales)}")
    found = at_scales[scale]
    if not isinstance(found, Study):
        raise ExperimentError(f"{path}: STUDY[{scale!r}] is {found!r}, not a Study")
    return found, f"{path}:{scale}/"


def _of_ablation(module: ModuleType, path: str, scale: str) -> Study:
    ablation = getattr(module, "ABLATION", None)
    if not ablation:
        raise ExperimentError(f"{path} has neither a STUDY (a Study by scale) nor an ABLATION (experiments by name)")
    if scale != "cpu":
        raise ExperimentError(f"{path} has an ABLATION at one scale: --scale {scale} needs a STUDY that has it")
    try:
        return Study(Path(path).stem, dict(ablation))
    except ValueError as error:
        raise ExperimentError(f"{path}: {error}") from error

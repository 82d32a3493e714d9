"""The `Study` value: arms, their starting policies and hypotheses, all registered before the first run.

An experiment module defines its studies by scale in `STUDY`; a module with only an `ABLATION` is a study without
hypotheses.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
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
    """Arms x seeds. The arms of a seed are paired: the same problems in the same order, and the same noise.

    starts: experiments with a warm start, run once per seed without their RL steps; an arm whose `start` is a name in
    `starts` starts from that policy. hypotheses: one family, whose p-values are corrected together. seeds: the default
    number.
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
            raise ValueError(f"{name!r} is the name of an arm and of a start; rename one of them")
        for name in (*self.arms, *self.starts):
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a folder; use letters, digits and any of _.=+-")
        for name, start in self.starts.items():
            if start.warm_start is None:
                raise ValueError(f"starts[{name!r}] has no warm_start, so it makes no policy to start from; add one")
        for hypothesis in self.hypotheses:
            for arm in (hypothesis.treatment, hypothesis.control):
                if arm not in self.arms:
                    arms = ", ".join(self.arms)
                    raise ValueError(f"{hypothesis.claim!r} names an unknown arm {arm!r}; the arms are {arms}")
        unused = sorted(set(self.starts) - {arm.start for arm in self.arms.values()})
        if unused:
            raise ValueError(f"no arm uses starts {', '.join(map(repr, unused))}; set the start of an arm to the name")

    @property
    def experiments(self) -> dict[str, Experiment]:
        """All experiments by name: the arms, and the starts reduced to their warm start."""
        return {**self.arms, **{name: only_warm_start(start) for name, start in self.starts.items()}}

    def with_budget(self, tokens: int) -> "Study":
        """This study with every arm ending after `tokens` generated tokens."""
        return replace(self, arms={name: replace(arm, token_budget=tokens) for name, arm in self.arms.items()})

    def registered(self) -> dict[str, Any]:
        """The JSON that is fixed before the first run. Its `sha256` identifies the study; seeds may still be added."""
        content = {
            "title": self.title,
            "hypotheses": config.to_json(self.hypotheses),
            "arms": {name: config.fingerprint(arm) for name, arm in self.arms.items()},
            "starts": {name: config.fingerprint(start) for name, start in self.starts.items()},
        }
        return {**content, "sha256": config.fingerprint(content)}


def only_warm_start(experiment: Experiment) -> Experiment:
    """Reduce an experiment to its warm start, followed by one RL step that changes nothing."""
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
        checkpointing=replace(experiment.checkpointing, keep_best=False),  # nothing is validated
        sampler_mesh=None,
    )


def load_study(path: str, scale: str) -> tuple[Study, str]:
    """Load the study of a Python file at a scale; also returns the prefix of an arm's name in its experiment spec.

    Raises ExperimentError if the file has no such study.
    """
    module = load_module(path)
    studies, ablation = getattr(module, "STUDY", None), getattr(module, "ABLATION", None)
    if studies is None:
        if not ablation:
            raise ExperimentError(
                f"{path} has neither a STUDY (studies by scale) nor an ABLATION (experiments by name)"
            )
        if scale != "cpu":
            raise ExperimentError(f"{path} has only an ABLATION, which has one scale; --scale {scale} needs a STUDY")
        try:
            return Study(Path(path).stem, dict(ablation)), f"{path}:"
        except ValueError as error:
            raise ExperimentError(f"{path}: {error}") from error
    if not isinstance(studies, Mapping):
        kind = type(studies).__name__
        raise ExperimentError(f"{path}: STUDY is of type {kind}; expected studies by scale, {{'cpu': Study(...)}}")
    if scale not in studies:
        raise ExperimentError(f"{path} has no scale {scale!r}; it has {', '.join(studies)}")
    if not isinstance(study := studies[scale], Study):
        raise ExperimentError(f"{path}: STUDY[{scale!r}] is {study!r}, not a Study")
    return study, f"{path}:{scale}/"

"""The catalogue of techniques, from their docstrings: `python docs/tools/catalogue.py > docs/techniques.md`."""

import importlib
import inspect
from dataclasses import MISSING, fields, is_dataclass
from textwrap import dedent
from typing import Any

import peer_functions

from rl_llm import algorithms
from rl_llm.algorithms import Reference
from rl_llm.experiment import (
    Conversations,
    Curriculum,
    Difficulty,
    DynamicSampling,
    Mixture,
    Replay,
    ResponseLength,
    RewardModel,
    StoredResponses,
    Teacher,
    WarmStart,
)
from rl_llm.learner.critic import Critic
from rl_llm.model import Lora

PARTS = {
    "Advantages": ("advantage", "several_rewards", "returns", "whitening"),
    "Objectives": ("objective", "score_objective", "sequence_objective", "covariance_objective", "distillation"),
    "Aggregation": ("aggregate",),
    "Divergence, entropy and likelihood": ("divergence", "controller", "likelihood"),
    "Filters": ("filters",),
    "Shaping of the reward": ("shaping",),
    "Corrections for another sampler": ("correction",),
    "A critic": ("critic",),
    "Preferences": ("preference_objective", "preference"),
}
AROUND = {
    Reference: "Experiment.reference",
    Lora: "ModelConfig.lora",
    Critic: "Experiment.critic",
    Curriculum: "Experiment.curriculum",
    Difficulty: "Curriculum.difficulty",
    ResponseLength: "Curriculum.length",
    DynamicSampling: "Experiment.dynamic_sampling",
    Replay: "Experiment.replay",
    WarmStart: "Experiment.warm_start",
    Conversations: "WarmStart.demonstrations",
    Mixture: "Experiment.mixture",
    StoredResponses: "Experiment.responses",
    Teacher: "Experiment.teacher",
    RewardModel: "Experiment.reward_model",
}
WHEN = {
    "Advantages": "Once per step, on the whole batch, after filters and shaping; constants in all updates of the step.",
    "Objectives": "At every update, on its part of the batch.",
    "Aggregation": "Once per step, on the whole batch: the weights that the tokens' losses have in all updates.",
    "Divergence, entropy and likelihood": "At every update, beside the objective; controllers between steps.",
    "Filters": "Once per step, before all else, on the rewards as they were given.",
    "Shaping of the reward": "Once per step, after the filters and before the advantages.",
    "Corrections for another sampler": "Once per step, after the weights, which they multiply.",
    "A critic": "At every update of a critic, on its part of the batch.",
    "Preferences": "At every update, on responses that were judged before, whoever wrote them.",
}
HEAD = """# Techniques

Written by `python docs/tools/catalogue.py > docs/techniques.md`; a test compares. Every technique is a value of one of
these classes in an `Algorithm`; the recipes at the end are such values. "Refused" says where a knob could not act; an
`Algorithm` is refused as well where the run does not make or carry what one of its components needs.

"Peers" says what other frameworks do differently, and which value of ours returns the same as a function of theirs:
Python, in the names of their parameters (None where not given; A is any advantage, T the width of the batch).
`tests/test_peer_oracles.py` compares with what their functions returned; the rest was read, not run. Versions:
{versions}.
"""


def catalogue() -> str:
    """The whole page."""
    versions = ", ".join(f"{peer} {version}" for peer, version in peer_functions.versions().items())
    parts = [HEAD.format(versions=versions)]
    for title, modules in PARTS.items():
        parts.append(f"\n## {title}\n\n{WHEN[title]}\n")
        parts += [entry(kind) for module in modules for kind in components(module)]
    parts.append("\n## Around the algorithm\n\nFields of an `Experiment`, which refuses those that cannot act.\n")
    parts += [
        f"\n### `{signature(kind)}`, in `{place}`\n\n{paragraphs(kind.__doc__)}\n" for kind, place in AROUND.items()
    ]
    parts.append(peer_functions.plain_section())
    parts.append(
        "\n## Recipes\n\nIn `rl_llm/algorithms/recipes.py`, each with its source and with what it leaves out.\n"
    )
    parts += [f"\n* `{name}` = `{brief(value)}`\n" for name, value in recipes().items()]
    return "".join(parts)


def components(module: str) -> list[type]:
    """The frozen dataclasses that a module defines, in its order."""
    found = importlib.import_module(f"rl_llm.algorithms.{module}")
    kinds = [kind for kind in vars(found).values() if inspect.isclass(kind) and kind.__module__ == found.__name__]
    return [kind for kind in kinds if is_dataclass(kind)]


def recipes() -> dict[str, Any]:
    """The algorithms that the package exports, by name."""
    return {name: value for name, value in vars(algorithms).items() if isinstance(value, algorithms.Algorithm)}


def entry(kind: type) -> str:
    """One component: its name and defaults, its docstring, what its `check` refuses, and what peers have for it."""
    lines = [f"\n### `{signature(kind)}`\n\n{paragraphs(kind.__doc__)}\n"]
    check = getattr(kind, "check", None)
    when = paragraphs(check.__doc__ if check else "Refuses no setting by itself.")
    refused = when.startswith("Raises ValueError ")
    lines.append(f"\n{'Refused: ' if refused else ''}{when.removeprefix('Raises ValueError ')}\n")
    lines.append(peer_functions.section(kind.__name__))
    return "".join(lines)


def signature(kind: type) -> str:
    """The name of a component, its fields and their defaults."""
    told = [f.name if f.default is MISSING else f"{f.name}={f.default!r}" for f in fields(kind)]
    return f"{kind.__name__}({', '.join(told)})"


def brief(value: Any) -> str:
    """A component as Python, without what is at its default."""
    if isinstance(value, tuple):
        return "(" + "".join(f"{brief(item)}, " for item in value).rstrip() + ")"
    if not is_dataclass(value):
        return repr(value)
    told = [(f.name, getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default]
    return f"{type(value).__name__}({', '.join(f'{name}={brief(item)}' for name, item in told)})"


def paragraphs(docstring: str | None) -> str:
    """A docstring as it stands, without its indentation; lines that are set in stay a block of their own."""
    first, _, rest = (docstring or "").strip().partition("\n")
    text = "\n".join(line.rstrip() for line in (first, *dedent(rest).split("\n")))
    return text.strip()


if __name__ == "__main__":
    print(catalogue(), end="")

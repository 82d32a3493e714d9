"""Catalogue of techniques, from their docstrings: `python docs/tools/catalogue.py > docs/techniques.md`."""

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
    "Advantages": ("advantage", "returns", "whitening"),
    "Objectives": ("objective", "score_objective", "covariance_objective", "distillation"),
    "Aggregation": ("aggregate",),
    "Divergence, entropy and likelihood": ("divergence", "controller"),
    "Filters": ("filters",),
    "Shaping of the reward": ("shaping",),
    "Corrections for another sampler": ("correction",),
    "A critic": ("critic",),
    "Preferences": ("preference",),
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
    "Aggregation": "Once per step, on the whole batch: weights of the tokens' losses in all updates.",
    "Divergence, entropy and likelihood": "At every update, beside the objective; controllers between steps.",
    "Filters": "Once per step, before everything else, on unshaped rewards.",
    "Shaping of the reward": "Once per step, after the filters and before the advantages.",
    "Corrections for another sampler": "Once per step, after the weights, which they multiply.",
    "A critic": "At every update of a critic, on its part of the batch.",
    "Preferences": "At every update, on graded responses from any source.",
}
HEAD = """# Techniques

Written by `python docs/tools/catalogue.py > docs/techniques.md`; a test compares. Every technique is a value of one of
these classes in an `Algorithm`; the recipes at the end are such values. "Refused" names runs in which a knob cannot
act. An `Algorithm` is also refused if the run does not make the batch fields that a component needs.

"Peers" lists differences in other frameworks, and which of our values equals a function of theirs: Python, in the names
of their parameters (None where not given; A is any advantage, T the width of the batch). `tests/test_peer_oracles.py`
compares with the outputs of their functions; everything else was read, not run. Versions:
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
        "\n## Recipes\n\nIn `rl_llm/algorithms/recipes.py`, each with its source and its differences from it.\n"
    )
    parts += [f"\n* `{name}` = `{brief(value)}`\n" for name, value in recipes().items()]
    return "".join(parts)


def components(module: str) -> list[type]:
    """Frozen dataclasses that a module defines, in its order."""
    found = importlib.import_module(f"rl_llm.algorithms.{module}")
    kinds = [kind for kind in vars(found).values() if inspect.isclass(kind) and kind.__module__ == found.__name__]
    return [kind for kind in kinds if is_dataclass(kind)]


def recipes() -> dict[str, Any]:
    """Algorithms that the package exports, by name."""
    return {name: value for name, value in vars(algorithms).items() if isinstance(value, algorithms.Algorithm)}


def entry(kind: type) -> str:
    """Entry of one component: signature, docstring, refusals of its `check`, and peers."""
    lines = [f"\n### `{signature(kind)}`\n\n{paragraphs(kind.__doc__)}\n"]
    check = getattr(kind, "check", None)
    when = paragraphs(check.__doc__ if check else "Acts in every run.")
    refused = when.startswith("Raises ValueError ")
    lines.append(f"\n{'Refused: ' if refused else ''}{when.removeprefix('Raises ValueError ')}\n")
    lines.append(peer_functions.section(kind.__name__))
    return "".join(lines)


def signature(kind: type) -> str:
    """Name of a component, its fields and their defaults."""
    shown = [f.name if f.default is MISSING else f"{f.name}={f.default!r}" for f in fields(kind)]
    return f"{kind.__name__}({', '.join(shown)})"


def brief(value: Any) -> str:
    """A component as Python, without fields at their defaults."""
    if isinstance(value, tuple):
        return "(" + "".join(f"{brief(item)}, " for item in value).rstrip() + ")"
    if not is_dataclass(value):
        return repr(value)
    shown = [(f.name, getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default]
    return f"{type(value).__name__}({', '.join(f'{name}={brief(item)}' for name, item in shown)})"


def paragraphs(docstring: str | None) -> str:
    """A docstring without its indentation; indented lines stay a block of their own."""
    first, _, rest = (docstring or "").strip().partition("\n")
    text = "\n".join(line.rstrip() for line in (first, *dedent(rest).split("\n")))
    return text.strip()


if __name__ == "__main__":
    print(catalogue(), end="")

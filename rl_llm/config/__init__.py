"""Configuration as values: override, write down, fingerprint and load them. Imports no JAX."""

from rl_llm.config.loading import ExperimentError, load_experiment, load_module
from rl_llm.config.values import (
    OverrideError,
    check_choices,
    differences,
    fingerprint,
    is_component,
    nearest,
    override,
    to_json,
)

__all__ = [
    "ExperimentError",
    "OverrideError",
    "check_choices",
    "differences",
    "fingerprint",
    "is_component",
    "load_experiment",
    "load_module",
    "nearest",
    "override",
    "to_json",
]

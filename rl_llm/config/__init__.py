"""Configuration as values: check, override, record, fingerprint and load them. Imports no JAX."""

from rl_llm.config.fields import Checked, check_fields, is_component, nearest
from rl_llm.config.loading import ExperimentError, file_of, load_experiment, load_module
from rl_llm.config.source import Code, code_of
from rl_llm.config.values import OverrideError, differences, fingerprint, override, to_json

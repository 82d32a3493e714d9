"""docs/techniques.md matches the code."""

import importlib
import inspect
from dataclasses import is_dataclass
from pathlib import Path

import peer_functions
from catalogue import AROUND, PARTS, catalogue, components

from rl_llm import algorithms

PAGE = Path(__file__).parents[2] / "docs" / "techniques.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == catalogue(), "run: python docs/tools/catalogue.py > docs/techniques.md"


def test_every_exported_component_is_on_the_page():
    shown = {kind.__name__ for modules in PARTS.values() for module in modules for kind in components(module)}
    kinds = {name for name, kind in vars(algorithms).items() if inspect.isclass(kind) and is_dataclass(kind)}
    assert kinds - shown - {kind.__name__ for kind in AROUND} == {"Algorithm", "RunShape", "Moments"}


def test_every_check_has_a_docstring():
    kinds = [kind for modules in PARTS.values() for module in modules for kind in components(module)]
    assert [kind.__name__ for kind in kinds if hasattr(kind, "check") and not kind.check.__doc__] == []


def test_peers_toml_names_our_components_and_functions():
    shown = {kind.__name__ for modules in PARTS.values() for module in modules for kind in components(module)}
    assert set(peer_functions.components()) <= shown
    for ours in peer_functions.plain().values():
        module, _, name = ours.rpartition(".")
        assert callable(getattr(importlib.import_module(f"rl_llm.{module}"), name))

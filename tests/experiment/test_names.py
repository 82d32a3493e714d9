"""Names that an experiment file uses."""

import inspect
from collections import defaultdict
from dataclasses import is_dataclass
from importlib import import_module
from pkgutil import walk_packages

import rl_llm


def test_dataclasses_have_distinct_names():
    """Records and fingerprints name a class of the package without its module."""
    names = [found.name for found in walk_packages(rl_llm.__path__, "rl_llm.") if not found.name.endswith("__main__")]
    places = defaultdict(set)
    for module in map(import_module, names):
        for kind in vars(module).values():
            if inspect.isclass(kind) and is_dataclass(kind) and kind.__module__ == module.__name__:
                places[kind.__qualname__].add(module.__name__)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}
    assert {"Experiment", "Clip", "AdamW", "ModelConfig", "Reward", "ModularSum", "MeshShape"} <= set(places)


def test_the_imports_of_an_experiment_file_are_those_that_the_package_documents():
    lines = [line.strip() for line in (rl_llm.__doc__ or "").splitlines() if line.strip().startswith("from ")]
    names = [line.partition("#")[0].strip().removesuffix(", ...").split(" import ") for line in lines]
    assert len(names) > 10
    for place, imported in names:
        module = import_module(place.removeprefix("from "))
        assert all(hasattr(module, name) for name in imported.split(", ")), place

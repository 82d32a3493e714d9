"""experiment.json: the record of a run, and how it differs from the surroundings of a later process."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import jax

from rl_llm import config
from rl_llm.config.source import NO_CODE, Code, commit_of
from rl_llm.experiment import Experiment

PACKAGES = ("rl-llm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # can change a run's bits
GRADING_PACKAGES = ("math-verify", "latex2sympy2-extended", "sympy", "reasoning-gym")  # extras that can change a grade


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a result: name -> version, without extras that are not installed."""
    extras = {name: version(name) for name in GRADING_PACKAGES if any(distributions(name=name))}
    return {name: version(name) for name in PACKAGES} | extras


def experiment_record(
    experiment: Experiment,
    spec: str,
    overrides: Sequence[str],
    seed: int,
    problems: str,
    sources: Sequence[str] = (),
    code: Code = NO_CODE,
) -> dict[str, Any]:
    """Content of experiment.json: the resolved experiment and everything needed to run it again.

    `problems` is their fingerprint (`prepare.problems_fingerprint`); `sources` names the checkpoints of other runs.
    """
    return {
        "spec": spec,
        "folder": str(Path.cwd()),
        "overrides": list(overrides),
        "seed": seed,
        "fingerprint": config.fingerprint(experiment),
        "problems": problems,
        "sources": list(sources),
        "tokenizer": experiment.tokenizer.fingerprint(),
        "experiment": config.to_json(experiment),
        "versions": package_versions(),
        "python": platform.python_version(),
        "devices": [str(device) for device in jax.devices()],
        "commit": commit_of(Path(__file__).parent),
        "code": code.digests,
        "code_commit": code.commit,
    }


def changed_surroundings(run_path: Path) -> dict[str, tuple[str, str]]:
    """Packages, commit, Python and devices that have changed since a run folder was created: name -> (then, now)."""
    record = read_experiment_record(run_path)
    then = {**record["versions"], "Python": record["python"], "devices": ", ".join(record["devices"])}
    then["commit of rl-llm"] = str(record.get("commit"))
    now = dict.fromkeys(record["versions"], "not installed") | package_versions()
    now |= {"Python": platform.python_version(), "devices": ", ".join(map(str, jax.devices()))}
    now["commit of rl-llm"] = str(commit_of(Path(__file__).parent))
    return {name: (then[name], now[name]) for name in now if then.get(name, now[name]) != now[name]}


def read_experiment_record(run_path: Path) -> dict[str, Any]:
    """Read experiment.json of a run folder; raises FileNotFoundError naming the folder if there is none."""
    path = run_path / "experiment.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run_path} is not a run folder: it has no experiment.json")
    return dict(json.loads(path.read_text()))

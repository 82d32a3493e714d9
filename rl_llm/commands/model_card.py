"""The model card of an export, README.md: how a model was trained, its evaluation, and the command that repeats it."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_llm.experiment import Experiment

CARD = "README.md"
CACHED = re.compile(r"models--(.+)--(.+?)(?:/|$)")  # a folder of the hub's cache
LICENCE_FIELDS = ("license", "license_name", "license_link")
FRONT_MATTER = re.compile(r"---\s*\n(.*?)^---\s*$", re.MULTILINE | re.DOTALL)
RESULTS = {"sampled": "accuracy", "greedy": "greedy"}


def model_card(
    run: Path, experiment: "Experiment", record: Mapping[str, Any], step: int, base: str | None, adapter: bool
) -> str:
    """Write the card of the policy of a run's step. `record` is its experiment.json, `base` the folder it started from.

    With `adapter`, the folder holds adapters of the base instead of the model.
    """
    from rl_llm.reports.run_report import repeat_command
    from rl_llm.runs.code import recorded_code
    from rl_llm.runs.folder import LEDGER

    begun, code = record.get("code") or {}, recorded_code(record, run / LEDGER) or {}
    changed = ", ".join(name for name in begun if code[name] != begun[name])
    mixed = f"The code was changed during the run: {changed}. One command does not repeat it.\n\n" if changed else ""
    name = base and Path(base).name
    kind = f"adapters (PEFT) of {name}" if adapter else f"{name}, trained further" if name else "a model"
    title = f"# {run.resolve().name}: {kind}\n\n"
    total = experiment.warm_steps + experiment.steps
    parts = [
        _front_matter(base, adapter),
        title + f"Trained with reinforcement learning by rl_llm. These are the weights of step {step} of {total}.",
        "## Training\n\n" + _table(("setting", "value"), _recipe(experiment, record, code)),
        "## Evaluation\n\n" + _evaluation(run, experiment, step),
        f"## To repeat it\n\n{mixed}```\n{repeat_command(dict(record))}\n```",
        _table(("made with", "version"), _versions(record)),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(base: str | None, adapter: bool) -> str:
    """The fields that the hub reads, in YAML."""
    lines = [f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: text-generation"]
    if base is not None:
        cached = CACHED.search(base)
        hint = "" if cached else "  # a folder: write the model's hub id before an upload"
        lines += [f"base_model: {json.dumps('/'.join(cached.groups()) if cached else base)}{hint}", *_licence(base)]
    tags = ["reinforcement-learning", "rl_llm", *(["lora"] if adapter else [])]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _licence(base: str) -> list[str]:
    """The licence of the base: the fields of its own card, or else its licence file."""
    import yaml
    from etils import epath

    from rl_llm.export.writing import files_beside_weights

    card = epath.Path(base) / CARD
    text = card.read_bytes().decode("utf-8-sig", "replace") if card.exists() else ""
    head = FRONT_MATTER.match(text)
    try:
        values = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        values = None
    given = {n: v for n, v in values.items() if n in LICENCE_FIELDS and v} if isinstance(values, dict) else {}
    files = [name for name in files_beside_weights(base) if name.lower().startswith("licen")]
    if given:
        return str(yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=math.inf)).splitlines()
    return [line for name in files[:1] for line in ("license: other", f"license_link: {name}")]


def _recipe(
    experiment: "Experiment", record: Mapping[str, Any], code: Mapping[str, str | None]
) -> Iterator[tuple[str, Any]]:
    """The settings of an experiment, with the algorithm's parts one by one, and what identifies the run."""
    algorithm, idle = experiment.algorithm, {"initialization"} if experiment.start else set()
    for field in fields(experiment):
        value = getattr(experiment, field.name)
        if field.name == "algorithm":
            idle |= set() if algorithm.value_loss else {"value_aggregate"}
            parts = {part.name: getattr(algorithm, part.name) for part in fields(algorithm) if part.name not in idle}
            yield from ((f"algorithm.{name}", part) for name, part in parts.items() if _is_set(part))
        elif field.metadata.get("fingerprint", True) and field.name not in idle and _is_set(value):
            yield field.name, value
    yield "seed", record["seed"]
    yield "end tokens", ", ".join(map(str, experiment.tokenizer.stop_ids))
    yield "SHA-256 of the experiment", record["fingerprint"]
    yield "SHA-256 of the problems", record["problems"]
    yield from ((f"SHA-256 of {file}", digest) for file, digest in code.items() if digest)
    yield from (("read from", origin) for origin in record["sources"])


def _is_set(value: Any) -> bool:
    """Whether a field has a value that says something."""
    return value not in (None, False, ())


def _evaluation(run: Path, experiment: "Experiment", step: int) -> str:
    """Held-out accuracy before and after, from summary.json; an unfinished run has none."""
    path, problems = run / "summary.json", experiment.evaluation.problems
    if not path.is_file():
        return "The run was not finished, so there is no evaluation of this policy."
    summary = json.loads(path.read_text())
    rows = [
        (name, *(f"{summary[f'{key}_{when}']:.1%}" for when in ("before", "after"))) for name, key in RESULTS.items()
    ]
    text = _table((f"accuracy on {problems} held-out problems", "before RL", "after RL"), rows)
    text += f"\n\nSampled: {experiment.responses_per_prompt} responses to each problem. Greedy: one."
    if summary["steps"] != step:
        text += f" The policy after RL is that of step {summary['steps']}, not the one in this folder."
    findings = [
        f"* {finding['name']} (RL step {finding['step']}): {finding['text']}" for finding in summary["findings"]
    ]
    return "\n".join([text, *(["", "Warnings derived from the run's own metrics:", ""] if findings else []), *findings])


def _versions(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from record["versions"].items()
    yield "Python", record["python"]
    commits = {"rl_llm": record["commit"], "the experiment": record.get("code_commit")}
    yield from ((f"commit of {name}", commit) for name, commit in commits.items() if commit)
    yield "devices", f"{len(record['devices'])} x {record['devices'][0]}"


def _table(head: Sequence[str], rows: Any) -> str:
    from rl_llm.reports.page import cell

    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

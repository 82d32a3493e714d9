"""`rl-llm samples`: read the responses that a run or an evaluation kept, in the terminal."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_llm.commands.common import DONE, UsageError, positive
from rl_llm.config.terminal import escaped, show

SUMMARY = "browse the responses of a run or an evaluation in the terminal"
EXAMPLES = """examples:
  rl-llm samples runs/slower                                   the first 20 responses
  rl-llm samples runs/slower --when after --max-reward 0       wrong responses after RL
  rl-llm samples runs/slower --contains "wait" --json          lines of samples.jsonl, for other programs"""

SHOWN = ("gold", "answer", "grade", "reward", "status", "message", "tokens", "finish_reason")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `samples`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run, an evaluation's folder, or a samples.jsonl")
    step = "samples of this step of metrics.jsonl: steps of the warm start count"
    parser.add_argument("--step", type=int, metavar="N", help=f"{step}, too")
    parser.add_argument("--when", metavar="NAME", help="samples of this kind: before, training, after or ungraded")
    parser.add_argument("--min-reward", type=float, metavar="R", help="samples with at least this reward")
    parser.add_argument("--max-reward", type=float, metavar="R", help="samples with at most this reward")
    parser.add_argument("--contains", metavar="TEXT", help="samples with this text in the prompt or the response")
    parser.add_argument("--limit", type=positive, default=20, metavar="N", help="at most so many (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def run(arguments: argparse.Namespace) -> int:
    """Print prompts and responses with their grades. Control characters in them are escaped.

    Filters are combined. A sample without a reward, such as an ungraded one, passes no filter of rewards.
    """
    from rl_llm.runs.files import read_records
    from rl_llm.runs.folder import SAMPLES

    path = arguments.folder / SAMPLES if arguments.folder.is_dir() else arguments.folder
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give a run, an evaluation's folder, or a samples.jsonl")
    try:
        samples = read_records(path)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for name in ("step", "when"):
        wanted, known = getattr(arguments, name), sorted({line[name] for line in samples if name in line})
        if wanted is not None and wanted not in known:
            listed = ", ".join(map(str, known)) or f"none has a {name}"
            raise UsageError(f"--{name} {wanted}: no sample of {path} is of it; there are: {listed}")
    found, warm = [line for line in samples if _matches(line, arguments)], _warm_steps(path.parent)
    for line in found[: arguments.limit]:
        show(json.dumps(line) if arguments.json else "\n".join(_described(line, warm)) + "\n")
    more = "; --limit shows more" if len(found) > arguments.limit else ""
    show(f"{len(found)} of {len(samples)} samples match{more}", file=sys.stderr)
    return DONE


def _matches(line: dict[str, Any], wanted: argparse.Namespace) -> bool:
    reward = line.get("reward")
    bounds = (wanted.min_reward, wanted.max_reward) != (None, None)
    if bounds and not isinstance(reward, int | float):
        return False
    return (
        (wanted.step is None or line.get("step") == wanted.step)
        and (wanted.when is None or line.get("when") == wanted.when)
        and (wanted.min_reward is None or reward >= wanted.min_reward)
        and (wanted.max_reward is None or reward <= wanted.max_reward)
        and (wanted.contains is None or any(wanted.contains in _text(line.get(n)) for n in ("prompt", "response")))
    )


def _warm_steps(folder: Path) -> int:
    """Steps of a run's warm start; 0 for a folder without a run."""
    from rl_llm.reports.run_report import read_object

    recorded = read_object(folder / "experiment.json").get("experiment", {})
    return int((recorded.get("warm_start") or {}).get("steps", 0))


def _described(line: dict[str, Any], warm: int) -> Iterator[str]:
    """The lines that show one sample. Training calls the expected answer `answer`, an evaluation `gold`."""
    if "gold" not in line:
        line = {name: value for name, value in line.items() if name != "answer"} | {"gold": line.get("answer")}
    place = ("step", "when", "suite", "problem", "sample")
    named = [f"{name} {escaped(_text(line[name]))}" for name in place if name in line]
    if warm and isinstance(line.get("step"), int) and line["step"] > warm:
        named.insert(0, f"RL step {line['step'] - warm}")
    yield "  ".join(named)
    yield f"  prompt    {_indented(line.get('prompt'))}"
    yield f"  response  {_indented(line.get('response'))}"
    shown = [f"{name} {escaped(_text(line[name]))}" for name in SHOWN if line.get(name) not in (None, "")]
    yield "  " + "  ".join(shown)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _indented(value: Any) -> str:
    return ("\n" + " " * 12).join(map(escaped, _text(value).split("\n")))

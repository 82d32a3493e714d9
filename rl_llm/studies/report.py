"""The report of a study: results.json, report.html and report.md."""

import json
from collections.abc import Sequence
from pathlib import Path

from rl_llm.runs.files import write_atomically
from rl_llm.studies.folder import RESULTS, Member
from rl_llm.studies.results import results_of
from rl_llm.studies.study import Study


def write_results(out: Path, study: Study, members: Sequence[Member]) -> str:
    """Write all that can be said of the members that are done; returns the verdicts as text for a terminal."""
    results = results_of(study, members)
    write_atomically(out / RESULTS, json.dumps(results.to_json(), indent=1).encode())
    return "\n".join(f"{v.outcome}: {v.hypothesis.claim} ({v.reason})" for v in results.verdicts)

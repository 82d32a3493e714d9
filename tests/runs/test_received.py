"""Folders that somebody else wrote: none of their code runs before its digest was shown and trusted."""

import json
import os
import py_compile
import sys
from dataclasses import replace
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest
from program import EXPERIMENT

from rl_llm.cli import main
from rl_llm.commands.common import UsageError, trust_folders
from rl_llm.config import Code, code_of, fingerprint, load_experiment, load_module, to_json
from rl_llm.config.source import sha256
from rl_llm.config.trust import untrusted_files
from rl_llm.experiment import Experiment
from rl_llm.parallel.mesh import MeshShape, make_meshes
from rl_llm.runs.folder import FORMAT, RunFolder
from rl_llm.runs.load import RecordError, load_source_models, recorded_experiment
from rl_llm.studies.folder import open_study
from rl_llm.studies.study import load_study

MARK = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
OWN_CLASS = """
from dataclasses import dataclass, replace
from rl_llm.rewards.components import Accuracy, Reward
from tests.data.tiny import cold

@dataclass(frozen=True)
class Half(Accuracy):
    weight: float = 0.5

base = replace(cold, reward=Reward((Half(),)))
ABLATION = {"half": base}
"""


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has run nothing yet, in a folder of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def received(file: Path, values: dict[str, Any], digest_of: str = "") -> Path:
    """A run folder whose record names a file, with the digest that the file has, as a forger would write it."""
    folder = file.parent / "run"
    folder.mkdir()
    record = {"format": FORMAT, "spec": str(file), "folder": str(file.parent), "overrides": [], "seed": 0}
    record |= {"fingerprint": digest_of or fingerprint(EXPERIMENT), "tokenizer": EXPERIMENT.tokenizer.fingerprint()}
    record |= {"experiment": values, "code": {file.name: sha256(file.read_bytes())}, "sources": []}
    (folder / "experiment.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def hostile() -> Path:
    """A received run of a class in a file below the current folder. The file leaves a mark when it is imported."""
    file = Path("hostile_file.py").absolute()
    file.write_text(MARK + OWN_CLASS)
    values = to_json(EXPERIMENT)
    values["reward"]["components"][0]["class"] = "hostile_file.Half"
    return received(file, values)


COMMANDS = {
    "evaluate": ["evaluate", "RUN"],
    "generate": ["generate", "RUN", "0+1="],
    "export": ["export", "RUN", "--out", "exported"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_code_that_the_user_never_ran(
    hostile: Path, command: str, capsys: pytest.CaptureFixture[str]
):
    assert main([word.replace("RUN", str(hostile)) for word in COMMANDS[command]]) == 2
    error = capsys.readouterr().err
    assert f"sha256 {sha256(Path('hostile_file.py').read_bytes())}  {Path('hostile_file.py').absolute()}" in error
    assert "--trust" in error
    assert not Path("ran").exists()


def test_code_of_a_start_is_refused_too(hostile: Path):
    mesh = make_meshes(MeshShape(), None).learner
    with pytest.raises(RecordError, match="hostile_file"):
        load_source_models(replace(EXPERIMENT, start=str(hostile)), mesh)
    assert not Path("ran").exists()


def test_a_run_of_installed_classes_needs_no_file():
    """Its record is enough, so the file that it names is not imported, and may be gone."""
    file = Path("hostile_file.py").absolute()
    file.write_text(MARK)
    folder = received(file, to_json(EXPERIMENT))
    assert recorded_experiment(folder)[0] == EXPERIMENT
    assert not Path("ran").exists()
    file.unlink()
    assert recorded_experiment(folder)[0] == EXPERIMENT


def test_all_code_that_would_run_is_shown(hostile: Path):
    """Neighbours, relative imports, the packages around the file, and folders without __init__.py."""
    package = Path("package")
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "near.py").write_text("import beside\nfrom bare.below.deep import value\n")
    Path("bare/below").mkdir(parents=True)
    Path("bare/below/deep.py").write_text("value = 1\n")
    Path("beside.py").write_text("")
    (package / "main.py").write_text("from package import near\nfrom . import relative\n")
    (package / "relative.py").write_text("")
    record = json.loads((hostile / "experiment.json").read_text())
    (hostile / "experiment.json").write_text(json.dumps({**record, "spec": "package/main.py"}))
    with pytest.raises(RecordError) as refused:
        recorded_experiment(hostile)
    names = ["package/__init__.py", "package/near.py", "package/main.py", "package/relative.py", "beside.py"]
    for name in [*names, "bare/below/deep.py"]:
        assert f"  {Path(name).absolute()}\n" in str(refused.value)


def test_trusted_code_runs_from_then_on(capsys: pytest.CaptureFixture[str]):
    file = Path("trusted_file.py").absolute()
    file.write_text(OWN_CLASS)
    _, experiment = load_experiment(str(file), Experiment)
    folder = received(file, to_json(experiment), fingerprint(experiment))
    with pytest.raises(RecordError, match="trusted_file"):
        recorded_experiment(folder)
    trust_folders(folder)
    assert f"sha256 {sha256(file.read_bytes())}  {file}" in capsys.readouterr().err
    assert recorded_experiment(folder)[0] == experiment
    file.write_text(OWN_CLASS + "# other code\n")
    with pytest.raises(RecordError, match="needs code that was never run here"):
        recorded_experiment(folder)


def test_a_missing_file_is_named_with_its_copy(hostile: Path):
    Path("hostile_file.py").unlink()
    with pytest.raises(RecordError, match=r"file .*hostile_file\.py, which is not here; .*run/code has a copy"):
        recorded_experiment(hostile)


def test_trust_that_cannot_act_is_refused():
    Path("own.py").write_text("")
    with pytest.raises(UsageError, match=r"--trust cannot act: .* is rebuilt from installed classes"):
        trust_folders(received(Path("own.py").absolute(), to_json(EXPERIMENT)))


def test_a_user_s_own_run_needs_no_trust():
    Path("mine.py").write_text(OWN_CLASS)
    _, experiment = load_experiment("mine.py", Experiment)
    folder = received(Path("mine.py").absolute(), to_json(experiment), fingerprint(experiment))
    code = code_of("mine.py", experiment)
    record = {**json.loads((folder / "experiment.json").read_text()), "problems": "cafe"}
    with RunFolder.create("runs/mine", record, code=code) as opened:
        assert opened.notes == []
    assert recorded_experiment("runs/mine")[0] == experiment
    assert recorded_experiment(folder)[0] == experiment, "the same code, wherever it is named"
    Path("mine.py").write_text(OWN_CLASS + "# edited\n")
    assert untrusted_files("mine.py") == {}, "the user's own file stays theirs"


def test_an_unwritable_state_is_said(monkeypatch: pytest.MonkeyPatch):
    Path("state_file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", "state_file")
    record = {"fingerprint": "f", "seed": 0, "problems": "p", "sources": [], "tokenizer": "t", "experiment": {}}
    with RunFolder.create("runs/x", record, code=Code({"one.py": b"1"})) as folder:
        (note,) = folder.notes
    assert "not remembered as yours" in note
    assert "--trust" in note


def test_a_compiled_copy_beside_trusted_code_does_not_run():
    """Python would prefer it to the text if time and size agree."""
    file, text = Path("compiled.py").absolute(), MARK + OWN_CLASS
    file.write_text(text)
    cached = Path(py_compile.compile(str(file), doraise=True) or "")
    assert cached == Path(cache_from_source(str(file)))
    seen = file.stat()
    file.write_text(OWN_CLASS + "#" * (len(text) - len(OWN_CLASS)))
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    values = to_json(EXPERIMENT)
    values["reward"]["components"][0]["class"] = "compiled.Half"
    folder = received(file, values)
    trust_folders(folder)
    with pytest.raises(RecordError, match="fingerprint mismatch"):
        recorded_experiment(folder)
    assert "compiled" in sys.modules
    assert not Path("ran").exists()


def test_the_report_of_a_received_study_runs_none_of_its_code(capsys: pytest.CaptureFixture[str]):
    Path("studied.py").write_text(OWN_CLASS)
    study, _ = load_study("studied.py", "cpu")
    ledger = open_study(Path("study"), study, "studied.py", "cpu", 1, resume=False)
    assert ledger.path.is_file()
    Path("other_study.py").write_text(MARK + OWN_CLASS)
    stored = json.loads(Path("study/study.json").read_text())
    Path("study/study.json").write_text(json.dumps({**stored, "spec": "other_study.py"}))
    assert main(["report", "study"]) == 2
    assert "never run here" in capsys.readouterr().err
    assert not Path("ran").exists()
    load_module("studied.py")


@pytest.mark.parametrize("damage", ["[]", "{}", '{"format": 2, "spec": 3}', "[" * 100_000, "null"])
def test_a_damaged_record_is_an_error_of_one_line(tmp_path: Path, damage: str):
    (tmp_path / "experiment.json").write_text(damage)
    with pytest.raises(RecordError, match=r"experiment\.json cannot be loaded|in record format 1"):
        recorded_experiment(tmp_path)

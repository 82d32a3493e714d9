"""Documents name only what exists, and every command that one shows is run or parsed."""

import argparse
import contextlib
import importlib
import json
import re
import runpy
import shlex
import textwrap
import tomllib
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, Command, blocks, named, typed

from launch.__main__ import main as launch
from launch.hardware import hardware_of
from rl_llm import algorithms, experiment
from rl_llm.cli import main as rl_llm
from rl_llm.config import load_experiment, override
from rl_llm.experiment import Experiment
from rl_llm.learner import critic, optimizer
from rl_llm.problem import split_of
from rl_llm.studies.study import load_study
from rl_llm.tasks.conversations import read_conversations
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.tokenizer import CharacterTokenizer

EXTERNAL = {"curl", "docker", "eval", "export", "gcloud", "git", "hf", "kubectl", "source", "ssh-add"}
COMMANDS = ("train", "ablate", "evaluate", "export", "plan", "report", "data_report", "grade", "generate", "samples")
README = ROOT / "README.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class Parsed(Exception):
    """A program has parsed its arguments; nothing else of it is run."""


@pytest.fixture(autouse=True)
def parse_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Commands of rl-llm load their experiments and stop; programs stop once their arguments are parsed."""
    monkeypatch.chdir(ROOT)
    for name in COMMANDS:
        monkeypatch.setattr(importlib.import_module(f"rl_llm.commands.{name}"), "run", check)


def check(arguments: argparse.Namespace) -> int:
    """The experiment or study of a command loads, with its overrides, where its file is one of the repository."""
    spec = getattr(arguments, "experiment", None) or getattr(arguments, "module", None)
    if spec and (ROOT / spec.partition(":")[0]).exists():
        if hasattr(arguments, "module"):
            load_study(arguments.module, arguments.scale)
        else:
            override(load_experiment(spec, Experiment)[1], arguments.overrides)
    elif spec:
        assert spec in (ROOT / "docs" / "getting_started.md").read_text(), f"there is no {spec}"
    return 0


def try_python(words: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python ...`: code is executed, modules and files parse their arguments."""
    if words[0] == "-c":
        exec(words[1], {})
    elif words[:2] == ["-m", "pip"]:
        try_pip(words[2:])
    elif words[:2] == ["-m", "pytest"]:
        assert (ROOT / words[2]).exists()
    elif words[:2] == ["-m", "launch"]:
        return  # test_launches_print_their_scripts
    elif not (ROOT / words[0]).exists():
        assert f"# {words[0]}\n" in page.read_text(), f"there is no {words[0]}"
    elif "parse_args" not in (ROOT / words[0]).read_text():
        assert words[1:2] in ([], [">"]), f"{words[0]} takes no arguments"
    else:
        parse_args = argparse.ArgumentParser.parse_args

        def parse(parser: argparse.ArgumentParser, *given: Any) -> None:
            raise Parsed(parse_args(parser, *given))

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


def try_pip(words: list[str]) -> None:
    """`pip install ...`: extras of this project are declared."""
    assert words[0] == "install"
    for extra in re.findall(r"^\.\[([\w,]+)\]$", words[-1]):
        assert set(extra.split(",")) <= set(PROJECT["optional-dependencies"])


def try_make(words: list[str]) -> None:
    """`make ...`: the targets exist."""
    targets = set(re.findall(r"^([\w./]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


def try_command(one: Command, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run or parse a command as far as that leaves nothing behind."""
    program, words = one.words[0].removeprefix(".venv/bin/") if one.words else "export", one.words[1:]
    if "..." in words or program in EXTERNAL:
        return
    if program == "rl-llm":
        with contextlib.suppress(SystemExit) if "--help" in words else contextlib.nullcontext():
            assert rl_llm(words) == 0
    elif program == "python":
        try_python(words, page, monkeypatch)
    elif program == "make":
        try_make(words)
    elif program == "pip":
        try_pip(words)
    else:
        assert (ROOT / program).is_file(), f"unknown program {program}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_work(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    sentences = [one for one in named(page) if len(one.words) > 2 and not any(map(str.isupper, one.words))]
    for one in (*typed(page), *sentences):
        try:
            try_command(one, page, monkeypatch)
        except SystemExit as stop:
            pytest.fail(f"{one} ended with {stop.code}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_a_page_exist(page: Path):
    text = page.read_text()
    rooms = "rl_llm|experiments|tests|docs|launch|requirements"
    missing = [path for path in re.findall(rf"`((?:{rooms})/[\w./-]*)(?::\w+)?`", text) if not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        if anchor:
            assert anchor in anchors(file), link


def anchors(page: Path) -> set[str]:
    """The anchors that headings of a page get."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_lists_every_document():
    text = (ROOT / "docs" / "README.md").read_text()
    assert [
        page.name for page in ROOT.glob("docs/*.md") if page.name != "README.md" and f"({page.name})" not in text
    ] == []


def test_readme_is_short_and_has_every_room():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    tree = re.search(r"^rl_llm/\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert tree is not None
    here = [path for path in (ROOT / "rl_llm").iterdir() if path.name[0] not in "_."]
    names = {path.name + ("/" if path.is_dir() else "") for path in here}
    assert set(re.findall(r"^  ([\w.]+/?) ", tree[1], re.MULTILINE)) == names


def test_the_excerpt_of_the_one_page_is_its_code():
    (excerpt,) = (block.text for block in blocks(README) if block.language == "python")
    assert excerpt in (ROOT / "experiments" / "one_page.py").read_text()


def test_accelerator_extras_want_the_same_jax_as_the_package():
    jax = next(one for one in PROJECT["dependencies"] if one.startswith("jax>"))
    for extra, backend in (("cuda", "cuda12"), ("tpu", "tpu")):
        (wanted,) = PROJECT["optional-dependencies"][extra]
        assert wanted.startswith(jax.replace("jax", f"jax[{backend}]", 1) + "; sys_platform == 'linux'")


def test_ways_to_learn_are_fields_with_values():
    """Every cell of the table is evaluated: its names are fields, and its values are ones that their classes take."""
    page = ROOT / "docs" / "ways_to_learn.md"
    known = {
        name: value for module in (algorithms, experiment, critic, optimizer) for name, value in vars(module).items()
    }
    fields_of = {field.name for kind in (Experiment, algorithms.Algorithm) for field in fields(kind)}
    cells = [
        cell for row in re.findall(r"^\| .* \| (.*) \|$", page.read_text(), re.MULTILINE) for cell in cell_codes(row)
    ]
    assert len(cells) > 12
    for cell in cells:
        assert set(eval(f"dict({cell})", known)) <= fields_of, cell
    (recipe,) = (block for block in blocks(page) if block.language == "python")
    exec(textwrap.dedent(recipe.text), {**known, "replace": replace})


def cell_codes(row: str) -> list[str]:
    """The code within a cell of a table."""
    return re.findall(r"`(\w+=[^`]*)`", row)


def test_lines_of_problem_files_can_be_read(tmp_path: Path):
    problems, examples = (
        block.text for block in blocks(ROOT / "docs" / "getting_started.md") if block.language == "json"
    )
    (tmp_path / "problems.jsonl").write_text(problems)
    split = split_of(json.loads(problems)["question"])
    (problem,) = JsonlProblems(tmp_path / "problems.jsonl").problems(split, 1, seed=0)
    assert problem.answer == "18"
    (tmp_path / "examples.jsonl").write_text(examples)
    letters = CharacterTokenizer(tuple(sorted(set(examples))))
    (example,) = read_conversations(tmp_path / "examples.jsonl", None, letters, row_tokens=128)
    assert example.metadata["learned"].any()


def launches(page: Path) -> list[list[str]]:
    """The arguments of every `python -m launch` of a page."""
    return [one.words[3:] for one in typed(page) if one.words[:3] == ["python", "-m", "launch"]]


def test_launches_print_their_scripts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    found = [words for page in PAGES for words in launches(page)]
    assert len(found) >= 5
    for words in found:
        file = tmp_path / words[1].partition(":")[0]
        file.parent.mkdir(exist_ok=True)
        file.touch()
        assert launch([word for word in words if word != "--submit"]) == 0, shlex.join(words)


def test_launched_trainings_fit_their_hardware():
    """The experiments take the options that are passed on, their meshes have as many devices as the hardware, and their
    prompts divide over these.
    """
    for words in (words for page in PAGES for words in launches(page)):
        options = dict(pairwise(words))
        _, launched = load_experiment(words[1], Experiment)
        launched = override(launched, [after for word, after in pairwise(words) if word == "--set"])
        chips, mesh = hardware_of(options["--accelerator"], options["--topology"]).chips, launched.mesh
        assert mesh.fixed in (None, chips), shlex.join(words)
        assert chips % (mesh.fsdp * mesh.tensor) == 0, shlex.join(words)
        for parts in (launched.sampling_batches, launched.updates_per_rollout * launched.micro_batches):
            assert launched.prompts_per_step // parts % (chips // mesh.tensor) == 0, shlex.join(words)

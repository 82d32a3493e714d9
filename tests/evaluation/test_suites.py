"""Suites: benchmarks of a file, samples that are kept, a folder without a run, suites watched in a run."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from program import Finished, finished, rl_llm

from rl_llm.commands.gate import check_suite_answers, pass_gate
from rl_llm.config import fingerprint, load_experiment
from rl_llm.evaluation.presets import BENCHMARKS, benchmark, parse_suites
from rl_llm.evaluation.run import suite_fingerprint
from rl_llm.evaluation.samples import by_problem
from rl_llm.evaluation.shared import learned_texts
from rl_llm.experiment import Evaluation, Experiment, Suite
from rl_llm.experiment.suite import OwnReward, Verifiers
from rl_llm.prepare import counts
from rl_llm.problem import Problem, Split
from rl_llm.rewards.components import Reward
from rl_llm.rewards.grader import Grader
from rl_llm.rollout.engine import open_grader
from rl_llm.sampler import Sampling
from rl_llm.tasks.datasets import JsonlProblems
from rl_llm.tasks.modular_sum import ModularSum
from rl_llm.tasks.reasoning_gym import ReasoningGym

FILE = "tests/data/suites.py"
MODEL = Path(__file__).parents[1] / "data" / "tokenizers" / "qwen3"  # a whole, tiny Hugging Face folder
TASK = ModularSum(min_terms=2, max_terms=3, modulus=3)
TINY = load_experiment(f"{FILE}:base")[1]
ROWS = {
    "gsm8k": {"question": "Two and two?", "answer": "2 + 2 = 4\n#### 4"},
    "math500": {"problem": "Half of one?", "solution": "So \\boxed{\\frac12}.", "answer": "\\frac{1}{2}", "level": 1},
    "aime24": {"ID": "2024-I-1", "Problem": "How many?", "Solution": "...", "Answer": 204},
    "aime25": {"question": "How many?", "answer": "70"},
    "amc23": {"id": 0, "problem": "How far?", "answer": 27.0, "url": "...", "question": "How far?"},
    "minerva": {"problem": "How wide?", "solution": "It is\n\\boxed{1.6} cm.", "type": "Astronomy", "idx": 0},
    "olympiadbench": {"id": 1, "context": None, "question": "How many?", "solution": ["..."], "final_answer": ["2"]},
    "reasoning_gym": {"question": "1 + 2 =", "answer": "3", "metadata": {"source_dataset": "chain_sum"}},
}
ANSWERS = ["4", "\\frac{1}{2}", "204", "70", "27", "1.6", "2", "3"]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("name", "answer"), list(zip(ROWS, ANSWERS, strict=True)))
def test_each_benchmark_reads_a_file_as_it_is_published(name: str, answer: str, tmp_path: Path):
    suite = benchmark(name)(write(tmp_path / "file.jsonl", ROWS[name]))
    (problem,) = suite.ask()
    assert (suite.name, problem.answer) == (name, answer)
    assert suite.task.verify(problem, f"So <answer>{answer}</answer>") == 1.0
    assert suite.task.verify(problem, "So <answer>1000</answer>") < 1.0


def test_names_of_benchmarks_ignore_capitals_and_dashes():
    assert benchmark("MATH-500") is BENCHMARKS["math500"]
    assert benchmark("AIME_2025") is BENCHMARKS["aime25"]
    assert benchmark("reasoning-gym") is BENCHMARKS["reasoning_gym"]


def test_a_data_set_of_reasoning_gym_needs_no_file():
    suite = benchmark("reasoning_gym")("chain_sum")
    assert (suite.task, suite.problems) == (ReasoningGym("chain_sum"), 256)


def test_ids_depend_on_question_and_suite_not_on_the_file(tmp_path: Path):
    suites = [benchmark("gsm8k")(write(tmp_path / name, ROWS["gsm8k"])) for name in ("a.jsonl", "b.jsonl")]
    first, second = (suite.ask() for suite in suites)
    assert first[0].id == second[0].id
    assert suite_fingerprint(suites[0], first) == suite_fingerprint(suites[1], second)
    asked_otherwise = replace(suites[0], prompt="Q: {question}")
    other = asked_otherwise.ask()
    assert other[0].id == first[0].id
    assert suite_fingerprint(asked_otherwise, other) != suite_fingerprint(suites[0], first)


def test_the_prompt_surrounds_the_question_or_the_last_message():
    class Talk(ModularSum):
        def problems(self, split: Any, count: int, seed: int) -> list[Problem]:
            said = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Two?"}]
            return [Problem(1, "Two?", "2"), Problem(2, "Hi\nTwo?", "2", metadata={"messages": said})]

    plain, talk = Suite("talk", Talk(), problems=2, prompt="Q: {question}\nA:").ask()
    assert (plain.prompt, plain.metadata["shown"]) == ("Two?", "Q: Two?\nA:")
    assert [message["content"] for message in talk.metadata["messages"]] == ["Hi", "Q: Two?\nA:"]


def test_a_suite_is_graded_by_its_own_task_up_to_the_stop():
    class Never(ModularSum):
        def verify(self, problem: Problem, response: str) -> float:
            return 0.0

    suite = Suite("sums", TASK, "train", problems=3, stop=("\nQ:",))
    problem, own = suite.ask()[0], TASK.problems("train", 3, 0)[0]
    verify, response = Verifiers(Never(), (suite,)), f"<answer>{problem.answer}</answer>"
    assert [verify(problem, response), verify(problem, response + "\nQ: 1+1="), verify(problem, response + "!")] == [
        *(1.0, 1.0, 0.0)
    ]
    assert verify(own, f"<answer>{own.answer}</answer>") == 0.0


class NeverRight(ModularSum):
    def verify(self, problem: Problem, response: str) -> float:
        return 0.0


def gate(*suites: Suite, **changes: Any) -> str:
    """Pass the gate with the tiny experiment and these suites; returns its message."""
    experiment = replace(TINY, evaluation=replace(TINY.evaluation, suites=suites), **changes)
    problems: Any = {split: experiment.task.problems(split, count, 0) for split, count in counts(experiment).items()}
    with open_grader(experiment) as grader:
        return pass_gate(experiment, problems | {suite.key: suite.ask() for suite in suites}, 0, grader)


def test_a_suite_with_a_verifier_that_cannot_be_passed_is_refused_before_the_run():
    sound = Suite("sound", TASK, "train", problems=3)
    assert "suite" not in gate(sound)
    with pytest.raises(ValueError, match=r"suite broken: 3 of 3 problems fail[\s\S]*take it out of evaluation.suites"):
        gate(sound, Suite("broken", NeverRight(max_terms=3, modulus=3), "train", problems=3))


class Sentences(ModularSum):
    """Golds as a file has them whose answers are solutions without a mark."""

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        found = super().problems(split, count, seed)
        return [replace(problem, answer=f"So it is {problem.answer}.", metadata={"solution": ""}) for problem in found]

    def verify(self, problem: Problem, response: str) -> float:
        return float(problem.answer in response)


def test_golds_that_are_sentences_are_named():
    """The verifier finds each equal to itself, but no response says it letter by letter."""
    task = Sentences(min_terms=2, max_terms=5, modulus=3)
    said = gate(Suite("whole", task, "train", problems=9), task=task)
    assert re.search(r"task modular_sum: (\d+) of \1 golds are sentences without a mark, such as 'So it is", said)
    assert "suite whole: 9 of 9 golds are sentences" in said
    assert "(task.layout.answer)" in said


def test_a_gold_that_no_prompt_asks_to_mark_is_probed_in_a_box(tmp_path: Path):
    """As after a few-shot prompt: an expression without a mark is no answer."""
    experiment = load_experiment("experiments/qwen3_4b_gsm8k.py:smoke")[1]
    experiment = replace(experiment, tokenizer=replace(experiment.tokenizer, system=None))
    task = JsonlProblems(write(tmp_path / "file.jsonl", {"question": "Half?", "answer": "#### x^2"}), split="all")
    suite = Suite("few", task, prompt="{question}")
    with Grader(task.verify, Reward(), workers=1) as grader:
        assert check_suite_answers(experiment, suite, suite.ask(), 0, grader).failures == ()


def test_a_suite_has_no_components_of_the_runs_reward():
    problem = Suite("sums", TASK, "train", problems=3).ask()[0]
    assert OwnReward(Reward().components)(problem, "", 0.5) == (0.5, {"accuracy": 0.5})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a/b"}, "Suite.name='a/b' is no name"),
        ({"prompt": "Q:"}, "lacks {question}"),
        ({"stop": ("",)}, "holds an empty text"),
        ({"problems": None}, "problems is missing"),
        ({"samples": 2, "sampling": Sampling(temperature=0.0)}, "samples=2 cannot act at temperature 0"),
    ],
)
def test_a_suite_that_cannot_be_asked_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Suite(**{"name": "sums", "task": TASK, "problems": 2, **fields})


def test_two_suites_of_one_name_are_refused():
    suite = Suite("sums", TASK, problems=2)
    with pytest.raises(ValueError, match="has 'sums' more than once"):
        Evaluation(suites=(suite, suite))


def test_votes_join_right_answers_and_tell_wrong_ones_apart():
    lines = [
        {"problem": 1, "grade": grade, "answer": answer}
        for grade, answer in [(1.0, "0.5"), (1.0, "1/2"), (0.0, "$3$"), (0.0, "3"), (0.0, None), (None, "4")]
    ]
    grades, (votes,) = by_problem(lines)
    assert grades[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert votes == [True, True, "3", "3", None, "4"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    rows = [{"question": f"How much is {n} plus {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(3)]
    write(folder / "gsm8k.jsonl", *rows)
    write(folder / "math.jsonl", ROWS["math500"])
    (folder / "shot.txt").write_text("Q: How much is 1 plus 1?\nA: 2\n\nQ: {question}\nA:\n")
    shutil.copytree(MODEL, folder / "model")
    return folder


@pytest.fixture(scope="module")
def evaluated(files: Path) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """A folder's result on two suites, its samples, and the folder that they are in."""
    out = files / "out"
    suites = ("--suite", f"gsm8k={files / 'gsm8k.jsonl'}", "--suite", f"math500={files / 'math.jsonl'}")
    options = ("--samples", "4", "--pass-at", "1,3", "--max-tokens", "8", "--rows", "4", "--seed", "5")
    code, stdout, stderr = rl_llm("evaluate", files / "model", *suites, *options, "--out", out, "--parquet")
    assert code == 0, stderr
    assert "gsm8k 3/3" in stderr
    return json.loads(stdout), kept(out), out


def kept(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_hugging_face_folder_is_evaluated_without_a_run(evaluated: Any):
    result, lines, out = evaluated
    assert json.loads((out / "evaluation.json").read_text()) == result
    assert result["model"]["kind"] == "huggingface"
    gsm8k = result["suites"]["gsm8k"]
    assert (gsm8k["problems"], gsm8k["samples"], gsm8k["seed"]) == (3, 4, 5)
    assert gsm8k["sampling"] == {"max_tokens": 8, "temperature": 0.6, "top_k": 0, "top_p": 0.95, "min_p": 0.0}
    assert gsm8k["prompt"]["template"] == BENCHMARKS["gsm8k"].prompt
    assert [list(gsm8k[name]) for name in ("pass_at_k", "maj_at_k")] == [["1", "3"]] * 2
    assert gsm8k["avg_at_k"]["low"] <= gsm8k["avg_at_k"]["value"] <= gsm8k["avg_at_k"]["high"]
    own = [line for line in lines if line["suite"] == "gsm8k"]
    assert gsm8k["truncated"] == sum(line["finish_reason"] == "length" for line in own) / 12
    assert gsm8k["response_length"] == sum(line["tokens"] for line in own) / 12


@pytest.mark.slow
def test_every_sample_is_kept(evaluated: Any):
    from pyarrow import parquet

    _, lines, out = evaluated
    assert [(line["suite"], line["sample"]) for line in lines] == [
        (suite, sample) for suite in ["gsm8k"] * 3 + ["math500"] for sample in range(4)
    ]
    assert {line["gold"] for line in lines} == {"0", "2", "4", "\\frac{1}{2}"}
    assert all("\\boxed{}" in line["prompt"] and line["status"] == "ok" and line["tokens"] <= 8 for line in lines)
    table = parquet.read_table(out / "samples.parquet").to_pylist()
    assert [{**row, "components": dict(row["components"])} for row in table] == lines


@pytest.mark.slow
def test_samples_do_not_depend_on_how_many_are_asked_at_once(evaluated: Any, files: Path):
    """Nor on the other suites, nor on the number of samples."""
    out, suite = files / "again", f"gsm8k={files / 'gsm8k.jsonl'}"
    options = ("--samples", "2", "--max-tokens", "8", "--rows", "2", "--seed", "5", "--out", out)
    stored = files / "stored.jsonl"
    code, _, stderr = rl_llm("evaluate", files / "model", "--suite", suite, *options, "--responses", stored)
    assert code == 0, stderr
    prompts = [json.loads(line)["prompt"] for line in stored.read_text().splitlines()]
    assert prompts == [line["prompt"] for line in kept(out)[::2]]  # as they were shown
    again = {(line["problem"], line["sample"]): line for line in kept(out)}
    first = {(line["problem"], line["sample"]): line for line in evaluated[1]}
    assert len(again) == 6
    assert all(first[place]["response"] == line["response"] for place, line in again.items())


@pytest.mark.slow
def test_a_few_shot_prompt_without_chat_ends_at_its_stop(files: Path):
    out = files / "shot"
    given = ("--prompt", files / "shot.txt", "--stop", "\n\nQ:", "--no-chat", "--temperature", "0", "--max-tokens", "4")
    suite = f"gsm8k={files / 'gsm8k.jsonl'}"
    code, stdout, stderr = rl_llm("evaluate", files / "model", "--suite", suite, *given, "--out", out)
    assert code == 0, stderr
    found = json.loads(stdout)["suites"]["gsm8k"]
    assert (found["samples"], found["prompt"]["chat"], found["prompt"]["stop"]) == (1, False, ["\n\nQ:"])
    assert kept(out)[0]["prompt"].endswith("?\nA:")


WRONG: dict[str, tuple[list[str], str]] = {
    "a file": (["{model}", "--suite", "gsm8k=nowhere.jsonl"], "nowhere.jsonl is not a file"),
    "a name": (["{model}", "--suite", "gms8k=x"], "there is no such suite; did you mean gsm8k?"),
    "no file": (["{model}", "--suite", "gsm8k"], "--suite gsm8k: expected NAME=FILE"),
    "a layout": (["{model}", "--suite", "gsm8k={files}/math.jsonl"], "math.jsonl:1 is no row of gsm8k"),
    "twice": (["{model}", *["--suite", "gsm8k={files}/gsm8k.jsonl"] * 2], "gsm8k is given more than once"),
    "k": (["{model}", "--suite", "gsm8k={files}/gsm8k.jsonl", "--pass-at", "4"], "--pass-at 4 needs as many samples"),
    "a folder": (
        ["{files}", "--suite", "gsm8k={files}/gsm8k.jsonl"],
        "is not a run folder (no experiment.json) and not",
    ),
    "no suite": (["{model}"], "is a Hugging Face folder, without a split of its own problems"),
    "a step": (["{model}", "--suite", "gsm8k={files}/gsm8k.jsonl", "--step", "3"], "without --step"),
    "room": (
        ["{model}", "--suite", "gsm8k={files}/gsm8k.jsonl", "--max-tokens", "250"],
        "suite gsm8k: the longest prompt",
    ),
    "greedy samples": (["{model}", "--temperature", "0", "--samples", "2"], "cannot act at --temperature 0"),
    "a stop alone": (["{model}", "--stop", "x"], "--stop cannot act without --prompt"),
    "greedy pass@k": (
        ["{model}", "--suite", "gsm8k={files}/gsm8k.jsonl", "--temperature", "0", "--pass-at", "1,4"],
        "at temperature 0; only --pass-at 1 can act",
    ),
    "the folder of a model": (
        ["{model}", "--suite", "gsm8k={files}/gsm8k.jsonl", "--out", "{model}"],
        "is the folder of a model, as config.json in it says: choose a new folder",
    ),
    "an output": (["{model}", "--suite", "gsm8k={files}/gsm8k.jsonl", "--out", "{files}/gsm8k.jsonl"], "is a file"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_usage_is_one_message(what: str, files: Path):
    arguments, message = WRONG[what]
    given = [text.format(model=files / "model", files=files) for text in arguments]
    code, stdout, stderr = rl_llm("evaluate", *given)
    assert (code, stdout, message in stderr) == (2, "", True), stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize("name", ["experiment.json", "study.json", "adapter_config.json", "samples.jsonl"])
def test_an_evaluation_overwrites_no_file_of_its_folder(name: str, files: Path, tmp_path: Path):
    (tmp_path / name).write_text("mine\n")
    code, _, stderr = rl_llm("evaluate", files / "model", "--suite", f"gsm8k={files}/gsm8k.jsonl", "--out", tmp_path)
    assert (code, name in stderr, "choose a new folder" in stderr) == (2, True, True), stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine\n"}


def trained(folder: Path, name: str) -> Finished:
    return finished(folder, rl_llm("train", f"{FILE}:{name}", "--out", folder))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return trained(tmp_path_factory.mktemp("watched") / "run", "watched")


@pytest.mark.slow
def test_suites_are_watched_before_during_and_after_a_run(watched: Finished):
    found = [[line[f"evaluation/{name}/accuracy"] for line in watched.metrics] for name in ("unseen", "seen")]
    assert [len(values) for values in found] == [2, 2]
    suites = watched.summary["suites"]
    assert {name: suite["after"] for name, suite in suites.items()} == {"unseen": found[0][-1], "seen": found[1][-1]}
    assert all(0 <= suite["before"] <= 1 for suite in suites.values())
    assert "suite seen: the run learns from" in watched.stdout
    assert "suite unseen" not in watched.stdout


@pytest.mark.slow
def test_watching_changes_nothing_of_the_training(watched: Finished, tmp_path: Path):
    alone = trained(tmp_path / "run", "base")
    experiments = [load_experiment(f"{FILE}:{name}", Experiment)[1] for name in ("base", "watched")]
    assert fingerprint(experiments[0]) == fingerprint(experiments[1])
    assert alone.summary["state_sha256"] == watched.summary["state_sha256"]
    assert "suites" not in alone.summary
    rest = [{name: value for name, value in line.items() if "time/" not in name} for line in watched.metrics]
    without = [{name: value for name, value in line.items() if name.count("/") < 2} for line in rest]
    assert [set(line) for line in without] == [{name for name in line if "time/" not in name} for line in alone.metrics]
    assert without[0]["evaluation/accuracy"] == alone.metrics[0]["evaluation/accuracy"]


@pytest.mark.slow
def test_a_run_also_learns_from_the_texts_of_its_start(watched: Finished):
    later = replace(TINY, start=str(watched.folder), evaluation=Evaluation(problems=9, every=2))
    own = {"train": [Problem(1, "another task", "")]}
    prompts = {problem.prompt for problem in TINY.task.problems("train", TINY.train_problems, 0)}
    assert set(learned_texts(later, own)) >= prompts | {"another task"}


@pytest.mark.slow
def test_an_older_checkpoint_is_evaluated_by_its_step(watched: Finished):
    there = sorted(int(path.name) for path in (watched.folder / "checkpoints").iterdir())
    code, stdout, stderr = rl_llm("evaluate", watched.folder, "--step", there[-1], "--seed", "7")
    assert code == 0, stderr
    assert (json.loads(stdout)["step"], json.loads(stdout)["suites"]["held_out"]["seed"]) == (there[-1], 7)
    assert json.loads(stdout)["model"]["rl_step"] == there[-1]  # no warm start
    code, _, stderr = rl_llm("evaluate", watched.folder, "--step", "99")
    assert (code, "has no step 99; it has" in stderr) == (1, True), stderr


def test_suites_of_the_command_line_are_those_of_the_file(files: Path):
    (suite,) = parse_suites([f"gsm8k={files / 'gsm8k.jsonl'}"])
    assert suite == Suite("gsm8k", JsonlProblems(str(files / "gsm8k.jsonl"), split="all"))

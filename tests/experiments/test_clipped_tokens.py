"""The study of clipped tokens: the kind of each vocabulary id, and the counts by kind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from peers.case import batch

from experiments.paper.t5_clipped_tokens import (
    KINDS,
    NONE,
    STUDY,
    ClipByKind,
    ClipByKindOfText,
    ShareOfClipped,
    kind,
    kinds_of,
)
from experiments.quickstart import TASK
from rl_llm.algorithms import Clip
from rl_llm.config import OverrideError, override
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from rl_llm.types import Batch

FOLDER = Path(__file__).parents[1] / "data" / "tokenizers" / "qwen3"

OF_THE_TASK = {
    "digit": ("0", "1", "2", "3", "4"),
    "sign": ("+", "=", ";"),
    "mark": ("<think>", "</think>", "<answer>", "</answer>"),
}
END, PAD = TASK.tokenizer.end_id, TASK.tokenizer.pad_id


def of(tokens: list[int], moved: list[int]) -> tuple[np.ndarray, Batch]:
    """Log-probabilities of a batch with one rewarded response, and the batch.

    The tokens at positions `moved` have become twice as likely.
    """
    mask = np.array([[token != PAD for token in tokens]], np.float32)
    old = np.full(mask.shape, -3.0, np.float32)
    fields = {"old_logp": old, "sampler_logp": old, "reward": np.ones(1, np.float32), "weight": mask}
    source = batch(mask, 1, advantage=mask, **fields).replace(tokens=np.array([tokens]))  # type: ignore[attr-defined]
    old = old.copy()
    old[0, moved] += np.log(2.0)
    return old, source


def test_tokens_of_the_task_are_counted_by_the_kind_of_their_symbol():
    ids = {text: TASK.tokenizer.encode(text) for texts in OF_THE_TASK.values() for text in texts}
    for right, texts in OF_THE_TASK.items():
        for text in texts:
            logp, source = of([*ids[text], END, PAD, PAD], moved=[0, 1])
            loss, metrics = ClipByKind(0.2, 0.2)(logp, source)
            np.testing.assert_array_equal(loss, Clip(0.2, 0.2)(logp, source)[0])
            for name in OF_THE_TASK:
                share = 0.5 if name == right else 0.0  # the end is of no kind, and padding is no token
                assert metrics[f"tokens/{name}"].result() == metrics[f"clipped/{name}"].result() == share, text
    logp, source = of([*ids["<answer>"], *ids["3"], *ids["4"], *ids["</answer>"], END], moved=[2])
    _, metrics = ClipByKind(0.2, 0.2)(logp, source)
    assert {name: float(metrics[name].result()) for name in metrics if not name.startswith("policy/")} == {
        **{"tokens/digit": np.float32(0.4), "tokens/sign": 0.0, "tokens/mark": np.float32(0.4)},
        **{"clipped/digit": np.float32(0.2), "clipped/sign": 0.0, "clipped/mark": 0.0},
    }


@pytest.mark.parametrize("chat", [False, True])
def test_ids_of_a_folder_are_sorted_by_their_text(chat: bool):
    tokenizer = HuggingFaceTokenizer(FOLDER, chat=chat)
    kinds = kinds_of(tokenizer)
    assert kinds.shape == (tokenizer.vocab_size,)

    def of_texts(*texts: str) -> set[str | None]:
        rows = [tokenizer.encode(text) for text in texts]
        assert all(len(row) == 1 for row in rows)
        return {KINDS[kinds[row[0]]] if kinds[row[0]] != NONE else None for row in rows}

    assert of_texts("7", " 1", "00") == {"digit"}
    assert of_texts(" =", "####", "\n", " ", ",") == {"sign"}
    assert of_texts("<think>", "</think>", "<|im_start|>") == {"mark"}
    assert of_texts(" pencils", "How", "ny", "x") == {"word"}
    assert of_texts("<|im_end|>", "<|endoftext|>") == {None}


@pytest.mark.parametrize(
    ("expected", "texts"),
    [
        ("mark", ("Therefore", " Therefore", " therefore", " if", "But", " so", " because")),
        ("word", ("therefore", "if", "but", " soft", " is", " the", "x", "\\frac", "若")),
        ("sign", (".", " (", "\n\n", ").\n", "<", " >=", "\N{REPLACEMENT CHARACTER}")),
        ("digit", ("1", " 12")),
    ],
)
def test_connectives_are_marks_where_they_begin_a_word(expected: str, texts: tuple[str, ...]):
    assert {text: kind(text) for text in texts} == dict.fromkeys(texts, expected)


def test_an_id_beyond_the_folder_has_no_kind():
    tokenizer = HuggingFaceTokenizer(FOLDER)
    objective = ClipByKindOfText(0.2, 0.2, tokenizer=tokenizer)
    logp, source = of([tokenizer.vocab_size + 20, *tokenizer.encode(" pencils")], moved=[0, 1])
    _, metrics = objective(logp, source)
    shares = {name: float(metrics[f"clipped/{name}"].result()) for name in KINDS}
    assert shares == {"digit": 0.0, "sign": 0.0, "mark": 0.0, "word": 0.5}


def test_programs_of_the_paper_are_planned_without_files():
    arm = STUDY["paper"].arms["high_0.28"]
    objective = arm.algorithm.objective
    assert isinstance(objective, ClipByKindOfText)
    assert objective.tokenizer == arm.tokenizer
    absent = replace(objective, tokenizer=replace(objective.tokenizer, folder="/absent"))
    logp, source = of([5, 6, 7], moved=[1])
    loss, metrics = absent(logp, source)
    plain, without = Clip(0.2, 0.28)(logp, source)
    np.testing.assert_array_equal(loss, plain)
    assert metrics.keys() == without.keys()


def test_the_kinds_are_those_of_the_experiments_tokenizer():
    arm = STUDY["paper"].arms["high_0.20"]
    with pytest.raises(OverrideError, match=r"ClipByKindOfText\.tokenizer=.* differs from the experiment's"):
        override(arm, ["tokenizer.folder=elsewhere"])
    moved = override(arm, ["tokenizer.folder=elsewhere", "algorithm.objective.tokenizer.folder=elsewhere"])
    assert moved.algorithm.objective.tokenizer.folder == "elsewhere"


def test_the_metric_is_one_if_a_kind_is_clipped_as_often_as_it_occurs():
    line = {"clipped/digit": 0.01, "clipped/sign": 0.0, "clipped/mark": 0.01, "tokens/mark": 0.25}
    assert ShareOfClipped("mark")({}, [{"phase": "warm_start"}, line]) == pytest.approx(2.0)
    assert ShareOfClipped("mark")({}, [line | {"clipped/word": 0.02}]) == pytest.approx(1.0)
    assert ShareOfClipped("mark")({}, [{name: 0.0 for name in line}]) is None

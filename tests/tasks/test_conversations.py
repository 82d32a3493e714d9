"""Conversations of a file: the loss covers the assistant's text, after the tokens it would be sampled after."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_datasets import write

from rl_llm.problem import Problem
from rl_llm.tasks import conversations
from rl_llm.tasks.conversations import read_conversations
from rl_llm.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from rl_llm.tasks.tokenizer import CharacterTokenizer

FOLDERS = Path(__file__).parents[1] / "data" / "tokenizers"
ALL = pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma3"])
CHARACTERS = CharacterTokenizer(tuple("0123456789+="))


def said(*texts: str, system: str | None = None) -> dict[str, Any]:
    """User and assistant take turns."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


def read(path: Path, *lines: Any, tokenizer: Any = CHARACTERS, row_tokens: int = 500) -> list[Problem]:
    return read_conversations(write(path / "chats.jsonl", *lines), None, tokenizer, row_tokens)


def learned(tokenizer: HuggingFaceTokenizer, problem: Problem) -> list[str]:
    """Learned texts, one for each span of learned tokens, with end tokens."""
    tokens, marks = problem.metadata["tokens"], problem.metadata["learned"]
    spans = np.split(tokens, np.flatnonzero(np.diff(marks)) + 1)
    return [tokenizer._files.tokenizer.decode(span.tolist(), skip_special_tokens=False) for span in spans[1::2]]


def test_the_response_of_a_pair_and_its_end_token_are_learned(tmp_path: Path):
    (found,) = read(tmp_path, {"prompt": "1+2=", "response": "3", "source": "somewhere"})
    assert found.metadata["tokens"].tolist() == [*CHARACTERS.encode("1+2=3"), CHARACTERS.end_id]
    assert found.metadata["learned"].tolist() == [False] * 4 + [True] * 2


def test_conversations_come_in_the_files_order(tmp_path: Path):
    lines = [{"prompt": f"{n}=", "response": str(n)} for n in range(30)]
    assert [json.loads(problem.prompt) for problem in read(tmp_path, *lines)] == lines


@ALL
def test_every_assistant_turn_of_a_chat_is_learned_with_its_end_token(name: str, tmp_path: Path):
    tokenizer = HuggingFaceTokenizer(FOLDERS / name, chat=True, system="Be brief.")
    chat = said("What is 1 + 2?", "It is 3.", "And 2 + 2?", "That is 4.", system="You calculate.")
    (found,) = read(tmp_path, chat, tokenizer=tokenizer)
    end = tokenizer._files.tokenizer.id_to_token(tokenizer.end_id)
    assert learned(tokenizer, found) == [f"It is 3.{end}", f"That is 4.{end}"]
    shown, turn = tokenizer.encode_chat(chat["messages"][:-1], "That is 4.")
    assert found.metadata["tokens"].tolist() == shown + turn  # the tokens that it would be sampled after


@ALL
def test_a_chat_of_one_turn_is_the_pair(name: str, tmp_path: Path):
    tokenizer = HuggingFaceTokenizer(FOLDERS / name, chat=True, system="Be brief.")
    pair = {"prompt": "What is 1 + 2?", "response": "It is 3."}
    one, other = read(tmp_path, said(*pair.values()), pair, tokenizer=tokenizer)
    for field in ("tokens", "learned"):
        np.testing.assert_array_equal(one.metadata[field], other.metadata[field])


def test_a_template_that_rewrites_earlier_turns_makes_one_sequence_per_turn(tmp_path: Path):
    """Qwen3's template drops the thoughts of earlier turns."""
    tokenizer = with_template(
        tmp_path,
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )
    first, second = read(tmp_path, said("1?", "one", "2?", "two"), tokenizer=tokenizer)
    assert learned(tokenizer, first) == ["<think></think>one<|im_end|>"]
    assert learned(tokenizer, second) == ["<think></think>two<|im_end|>"]
    assert tokenizer.encode("one")[0] in second.metadata["tokens"]


CHAT = HuggingFaceTokenizer(FOLDERS / "qwen3", chat=True)
PAIR = {"prompt": "What is 1 + 2?", "response": "It is 3."}


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ({"prompt": PAIR["prompt"], "completion": PAIR["response"]}, PAIR),
        ({"prompt": said(PAIR["prompt"])["messages"], "completion": PAIR["response"]}, PAIR),
        ({"prompt": said("1?")["messages"], "completion": [{"role": "assistant", "content": "2"}]}, said("1?", "2")),
        ({"instruction": "Add.", "input": "1 + 2", "output": "3"}, {"prompt": "Add.\n1 + 2", "response": "3"}),
        ({"instruction": "Hi", "input": "", "output": "Ho", "system": "Sing."}, said("Hi", "Ho", system="Sing.")),
        ({"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "2"}]}, said("1?", "2")),
        (
            {"system": "Sing.", "conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "2"}]},
            said("1?", "2", system="Sing."),
        ),
        (
            {"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "2", "weight": 1}]},
            said("1?", "2"),
        ),
        ({"conversations": said("1?", "2", system="Sing.")["messages"]}, said("1?", "2", system="Sing.")),
        (said("1?", "2") | {"prompt": "1?", "prompt_id": "x", "tools": None}, said("1?", "2")),
        ({"messages": [{**message, "name": None} for message in said("1?", "2")["messages"]]}, said("1?", "2")),
    ],
)
def test_usual_layouts_are_the_same_conversations(line: Any, same: Any, tmp_path: Path):
    one, other = read(tmp_path, line, same, tokenizer=CHAT)
    for field in ("tokens", "learned"):
        np.testing.assert_array_equal(one.metadata[field], other.metadata[field])


def test_of_a_prompt_with_turns_only_the_completion_is_learned(tmp_path: Path):
    whole = said("1?", "one", "2?", "two", system="Sing.")["messages"]
    for line in (
        {"prompt": whole[:-1], "completion": "two"},
        {"prompt": whole[1:-1], "completion": "two", "system": "Sing."},
    ):
        (found,) = read(tmp_path, line, tokenizer=CHAT)
        assert learned(CHAT, found) == ["two<|im_end|>"]
        shown, turn = CHAT.encode_chat(whole[:-1], "two")
        assert found.metadata["tokens"].tolist() == shown + turn


def test_blank_lines_count_and_a_list_of_json_is_read(tmp_path: Path):
    (tmp_path / "chats.jsonl").write_text(f"\ufeff\n{json.dumps(PAIR)}\r\n\n{{}}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"chats.jsonl:4: none of 'messages'.*there are no fields"):
        read_conversations(tmp_path / "chats.jsonl", None, CHAT, 500)
    (tmp_path / "chats.json").write_text(json.dumps([PAIR, PAIR]))
    assert len(read_conversations(tmp_path / "chats.json", None, CHAT, 500)) == 2


def test_records_change_only_with_the_version_of_the_parser():
    """If this fails, raise PARSER in rl_llm/tasks/conversations.py, so that no prepared copy outlives its parser."""
    lines = (PAIR, said("1?", "2", system="3"), {"prompt": said("1?", "2", "3?")["messages"], "completion": "4"})
    digest = hashlib.sha256(json.dumps([dict(conversations._parse(line)) for line in lines]).encode()).hexdigest()
    assert (conversations.PARSER, digest[:16]) == (3, "71b56860b7b29640")


def with_template(folder: Path, template: str) -> HuggingFaceTokenizer:
    """Qwen's files with another template."""
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / file).write_bytes((FOLDERS / "qwen3" / file).read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return HuggingFaceTokenizer(folder, chat=True)


GOOD = {"prompt": "1=", "response": "1"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "list instead of a JSON object"),
        ({"text": "1"}, "none of 'messages', 'conversations', 'instruction', 'prompt' is filled; there are 'text'"),
        ({"prompt": "1="}, "the field 'response' is missing"),
        (GOOD | {"completion": "1"}, "a line has either 'completion' or 'response'; remove one"),
        ({"prompt": "1=", "response": ""}, "the field 'response' is ''"),
        (GOOD | said("1", "2"), "a line has either 'messages', or 'prompt' and 'response'"),
        ({"messages": "hello"}, "'messages' is 'hello'; expected a list"),
        ({"messages": []}, "'messages' is []; expected a list of messages"),
        (GOOD | {"tools": [{"name": "f"}]}, "the field 'tools' would change what the model is shown"),
        (
            GOOD | {"chat_template_kwargs": {"enable_thinking": False}},
            "set its values in the tokenizer (thinking, date)",
        ),
        ({"conversations": "hello"}, "'conversations' is 'hello'; expected a list"),
        ({"conversations": [{"from": "tool", "value": "1"}]}, "conversations[0]: expected a role among system"),
        (
            {"conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": ""}]},
            "conversations[1]: the fie",
        ),
        ({"instruction": "1", "input": ""}, "the field 'output' is missing"),
        ({"instruction": "1", "output": "2", "history": [["1", "2"]]}, "the field 'history' would change"),
        (said("1", "2", system="3") | {"system": "4"}, "only the first message may be from the system"),
        ({"prompt": said("1")["messages"], "completion": said("1")["messages"]}, "has 1 messages; expected one of the"),
        (said("1", "2", "3"), "the last message must be the assistant's"),
        ({"messages": [{"role": "tool", "content": "1"}]}, r"messages[0]: expected a role among system, user, assis"),
        ({"messages": [{"role": "user"}]}, "messages[0]: the field 'content' is missing"),
        ({"messages": [{"role": "user", "content": "1", "name": "x"}]}, "messages[0]: unknown 'name'; expected only"),
        ({"messages": [{"role": "user", "content": "1", "weight": 0}]}, "messages[0]: unknown 'weight'"),
        ({"messages": said("1", "2")["messages"][1:]}, "a user's message must precede the assistant's first one"),
        ({"messages": [*said("1", "2")["messages"], *said("1", "2")["messages"][1:]]}, "two messages of the assistant"),
        ({"messages": [*said("1")["messages"], *said("1", "2", system="3")["messages"]]}, "only the first message may"),
        (said("1", "2"), "CharacterTokenizer has no chat template"),
        ({"prompt": "1=", "response": "x"}, "character 'x'"),
        ({"prompt": "1=", "response": "1" * 18}, "has 21 tokens; at most warm_start.demonstrations.row_tokens=20 fit"),
    ],
)
def test_an_invalid_line_is_named(tmp_path: Path, line: Any, reason: str):
    with pytest.raises(ValueError, match=r"chats.jsonl:2: ") as caught:
        read(tmp_path, GOOD, line, GOOD, row_tokens=20)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "changes the text before",
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "has 0 end tokens"),
        ("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}<|im_end|>", "changes the text before"),
    ],
)
def test_a_template_that_hides_the_response_is_refused_with_the_line(tmp_path: Path, template: str, reason: str):
    with pytest.raises(ValueError, match=rf"chats.jsonl:1: .*{reason}"):
        read(tmp_path, said("1", "one"), tokenizer=with_template(tmp_path, template))


@pytest.mark.parametrize("line", [said("1", "one<|im_end|>"), {"prompt": "1", "response": "<|im_end|>"}])
def test_an_end_within_a_response_is_refused_with_the_line(tmp_path: Path, line: Any):
    with pytest.raises(ValueError, match=r"chats.jsonl:1: .*end token"):
        read(tmp_path, line, tokenizer=HuggingFaceTokenizer(FOLDERS / "qwen3", chat=True))


def test_messages_need_a_chat_template(tmp_path: Path):
    with pytest.raises(ValueError, match=r"chats.jsonl:1: .*tokenizer.chat=true"):
        read(tmp_path, said("1", "one"), tokenizer=HuggingFaceTokenizer(FOLDERS / "qwen3"))


def test_a_missing_file_is_named_with_its_format(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"demonstrations.path='.*nothing.jsonl' is not a file.*\"messages\""):
        read_conversations(tmp_path / "nothing.jsonl", None, CHARACTERS, 10)

"""The tokenizer of a folder: the same ids as transformers, refused folders, and fingerprints.

`tests/tools/make_tokenizers.py` makes the folders and transformers' results.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_llm.problem import Problem
from rl_llm.rollout.text import decode_responses, encode_prompts, encode_responses
from rl_llm.tasks.huggingface_tokenizer import UNKNOWN, HuggingFaceTokenizer

FOLDERS = Path(__file__).parents[1] / "data" / "tokenizers"
QWEN, LLAMA, GEMMA = (HuggingFaceTokenizer(FOLDERS / name) for name in ("qwen3", "llama3", "gemma3"))
ALL = pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma3", "r1_distill"])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of Qwen's files that a test may change."""
    shutil.copytree(FOLDERS / "qwen3", tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "copy"


def change(path: Path, **values: Any) -> None:
    """Change values of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def ids_of(tokenizer: HuggingFaceTokenizer, *tokens: str) -> list[int]:
    """Ids of special tokens."""
    ids = [tokenizer.encode(token) for token in tokens]
    assert all(len(row) == 1 for row in ids)
    return [row[0] for row in ids]


@ALL
def test_prompts_have_the_same_ids_as_in_transformers(name: str):
    cases = json.loads((FOLDERS / name / "expected.json").read_text())["cases"]
    for case in cases:
        tokenizer = HuggingFaceTokenizer(FOLDERS / name, **case["fields"])
        assert tokenizer.encode_prompt(case["prompt"]) == case["ids"], case
        assert tokenizer.encode(case.get("text", "")) == (case["ids"] if "text" in case else [])


@ALL
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))  # ▁: Gemma's space
def test_decoding_undoes_encoding(name: str, text: str):
    tokenizer = HuggingFaceTokenizer(FOLDERS / name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_prompt_has_the_begin_token_of_its_folder_and_a_response_has_none():
    assert LLAMA.encode_prompt("2") == ids_of(LLAMA, "<|begin_of_text|>") + LLAMA.encode("2")
    assert GEMMA.encode_prompt("2") == ids_of(GEMMA, "<bos>") + GEMMA.encode("2")
    assert QWEN.encode_prompt("2") == QWEN.encode("2")
    assert len(LLAMA.encode("2")) == 1


@pytest.mark.parametrize(
    ("name", "chat", "stop"),
    [
        ("qwen3", False, ["<|im_end|>", "<|endoftext|>"]),
        ("qwen3", True, ["<|im_end|>", "<|endoftext|>"]),
        ("llama3", True, ["<|eot_id|>", "<|end_of_text|>"]),
        ("gemma3", False, ["<eos>", "<end_of_turn>"]),
        ("gemma3", True, ["<end_of_turn>", "<eos>"]),
        ("r1_distill", True, ["<｜end▁of▁sentence｜>"]),
    ],
)
def test_a_demonstration_ends_as_a_turn_does_and_sampling_with_any_end_of_the_folder(
    name: str, chat: bool, stop: list[str]
):
    tokenizer = HuggingFaceTokenizer(FOLDERS / name, chat=chat)
    assert list(tokenizer.stop_ids) == ids_of(tokenizer, *stop)
    assert tokenizer.end_id == tokenizer.stop_ids[0]


def test_a_base_model_in_a_chat_stops_where_the_template_ends_a_turn(copy: Path):
    change(copy / "tokenizer_config.json", eos_token="<|endoftext|>")
    (copy / "generation_config.json").unlink()
    alone, chat = HuggingFaceTokenizer(copy), HuggingFaceTokenizer(copy, chat=True)
    assert list(alone.stop_ids) == ids_of(alone, "<|endoftext|>")
    assert list(chat.stop_ids) == ids_of(chat, "<|im_end|>", "<|endoftext|>")


def test_decoding_stops_at_any_end_and_keeps_other_special_tokens():
    for end in QWEN.stop_ids:
        assert QWEN.decode([*QWEN.encode("<think>2</think><|im_start|>"), end, *QWEN.encode("3")]) == (
            "<think>2</think><|im_start|>"
        )


def test_unknown_ids_and_invalid_bytes_become_replacement_characters():
    two = QWEN.encode("2")[0]
    assert QWEN.decode(np.array([two, QWEN.vocab_size, two])) == f"2{UNKNOWN}2"
    assert QWEN.decode(QWEN.encode("é")[:1]) == UNKNOWN


def test_a_model_may_have_more_ids_but_not_fewer():
    QWEN.check_vocabulary(QWEN.vocab_size)
    QWEN.check_vocabulary(QWEN.vocab_size + 27)
    with pytest.raises(ValueError, match=r"model.vocabulary=319 is less than the 320 ids that texts have"):
        QWEN.check_vocabulary(319)


def with_image_token(folder: Path) -> int:
    """Add a token behind the last id, as Gemma 3 1B has one for images; returns its id."""
    number = HuggingFaceTokenizer(folder).vocab_size
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": "<image_soft_token>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return number


def test_a_token_that_never_occurs_may_lie_beyond_the_vocabulary(copy: Path):
    size = with_image_token(copy)
    tokenizer = HuggingFaceTokenizer(copy, chat=True)
    assert tokenizer.vocab_size == size + 1
    tokenizer.check_vocabulary(size)
    assert encode_prompts(tokenizer, [Problem(1, "2 + 2", "")], 30, vocabulary=size).lengths[0] > 4
    asked = f"'see <image_soft_token>' has the token '<image_soft_token>' .id {size}., for .* model.vocabulary={size};"
    with pytest.raises(ValueError, match=asked):
        encode_prompts(tokenizer, [Problem(1, "2", ""), Problem(2, "see <image_soft_token>", "")], 30, vocabulary=size)
    with pytest.raises(ValueError, match=asked):
        encode_responses(tokenizer, ["2", "see <image_soft_token>"], 30, "limit", size)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + "<image_soft_token>")
    with pytest.raises(ValueError, match=r"'2' has the token '<image_soft_token>'.*the chat template"):
        encode_prompts(HuggingFaceTokenizer(copy, chat=True), [Problem(1, "2", "")], 30, vocabulary=size)


def test_an_end_token_beyond_the_vocabulary_is_refused_by_name(copy: Path):
    size = with_image_token(copy)
    change(copy / "generation_config.json", eos_token_id=[322, size])
    with pytest.raises(ValueError, match=rf"the end token '<image_soft_token>' of .* has id {size}; model.vocabulary"):
        HuggingFaceTokenizer(copy).check_vocabulary(size)


def test_a_distilled_model_begins_its_response_with_a_thought_and_forgets_earlier_ones():
    tokenizer = HuggingFaceTokenizer(FOLDERS / "r1_distill", chat=True, system="Be brief.")
    asked, answered = {"role": "user", "content": "2"}, {"role": "assistant", "content": "<think>one</think>two"}
    ids = tokenizer.encode_messages([asked, answered, asked])
    begin, user, assistant = ids_of(tokenizer, "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
    think, end = ids_of(tokenizer, "<think>", "<｜end▁of▁sentence｜>")
    said, two, again = (tokenizer.encode(text) for text in ("Be brief.", "two", "2"))
    newline = tokenizer.encode("\n")
    turns = [begin, *said, user, *again, assistant, *two, end, user, *again, assistant, think, *newline]
    assert ids == turns


def test_id_0_is_a_token_like_any_other():
    assert QWEN.decode([0]) == "!"
    tokens, mask = encode_responses(QWEN, ["!", "2 + 2!!"], 8, "limit")
    rollout: Any = SimpleNamespace(tokens=tokens, mask=mask)
    assert decode_responses(QWEN, rollout) == ["!", "2 + 2!!"]
    prompts = encode_prompts(QWEN, [Problem(1, "!!", ""), Problem(2, "2!", "")], 4, prefix="!")
    assert prompts.tokens.tolist() == [[0, 0, 0, 0], [*QWEN.encode("2"), 0, 0, 0]]
    assert prompts.lengths.tolist() == [3, 3]


def test_nothing_is_read_before_it_is_needed(tmp_path: Path):
    absent = HuggingFaceTokenizer(tmp_path / "absent", chat=True)
    with pytest.raises(FileNotFoundError, match=r"absent' is not a folder: .*\n  hf download Qwen/.* --local-dir DIR"):
        absent.encode_prompt("2")
    with pytest.raises(FileNotFoundError, match=r"tokenizer.folder='' is not a folder"):
        HuggingFaceTokenizer("").fingerprint()
    download = r"hf download Qwen/Qwen3-4B --local-dir qwen3-4b, then tokenizer.folder=qwen3-4b"
    with pytest.raises(FileNotFoundError, match=f"tokenizer.folder='Qwen/Qwen3-4B' is not a folder: {download}"):
        HuggingFaceTokenizer("Qwen/Qwen3-4B").encode("2")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_missing_or_damaged_is_named(copy: Path, name: str):
    (copy / name).write_text("{")
    with pytest.raises(ValueError, match=rf"{name} is not "):
        HuggingFaceTokenizer(copy).encode("2")
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing: .*\n  hf download"):
        HuggingFaceTokenizer(copy).encode("2")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("generation_config.json", {"eos_token_id": [322, 999]}, r"eos_token_id=\[322, 999\] are not ids"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}},
            "files of two tokenizers",
        ),
        ("tokenizer_config.json", {"eos_token": "<end>"}, "names '<end>', which tokenizer.json does not have"),
    ],
)
def test_files_of_different_tokenizers_are_refused(copy: Path, file: str, values: dict[str, Any], message: str):
    change(copy / file, **values)
    with pytest.raises(ValueError, match=message):
        HuggingFaceTokenizer(copy).fingerprint()


def test_a_folder_without_any_end_is_refused(copy: Path):
    change(copy / "tokenizer_config.json", eos_token=None)
    (copy / "generation_config.json").unlink()
    with pytest.raises(ValueError, match="has no end token"):
        HuggingFaceTokenizer(copy).fingerprint()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thinking": False}, "tokenizer.thinking=False cannot act without tokenizer.chat=true"),
        ({"system": "Be brief."}, "tokenizer.system='Be brief.' cannot act without"),
        ({"date": "2025-01-31"}, "tokenizer.date='2025-01-31' cannot act without"),
        ({"chat": True, "date": "31.1.2025"}, "'31.1.2025' is not a day of the form YYYY-MM-DD"),
    ],
)
def test_fields_that_cannot_act_without_a_chat_are_refused_at_once(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        HuggingFaceTokenizer(FOLDERS / "qwen3", **fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("qwen3", {"date": "2025-01-31"}), ("llama3", {"thinking": True}), ("gemma3", {"thinking": True})],
)
def test_fields_that_the_template_ignores_are_refused(name: str, fields: dict[str, Any]):
    with pytest.raises(ValueError, match=rf"tokenizer.{next(iter(fields))}=.* cannot act: the chat template"):
        HuggingFaceTokenizer(FOLDERS / name, chat=True, **fields).encode_prompt("2")


def test_without_a_date_the_prompt_is_the_same_every_day():
    text = "".join(LLAMA.decode([token]) for token in HuggingFaceTokenizer(LLAMA.folder, chat=True).encode_prompt("2"))
    assert "Today Date: 26 Jul 2024" in text


def test_a_chat_needs_a_template(copy: Path):
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"has no chat template, .*tokenizer.chat=false"):
        HuggingFaceTokenizer(copy, chat=True).fingerprint()
    change(copy / "tokenizer_config.json", chat_template=[{"name": "default", "template": "{{ messages[0].content }}"}])
    assert HuggingFaceTokenizer(copy, chat=True).encode_prompt("2") == QWEN.encode("2")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no chats') }}", "cannot be rendered: no chats"),
        ("{% if %}", "cannot be rendered"),
        ("{{ strftime_now('%Y') }}", "'strftime_now' is undefined; give the tokenizer a date"),
        ("{{ messages.append(1) }}", "cannot be rendered: .*append"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered: .*__class__"),
        ("{% for i in range(1000000) %}{% endfor %}", "cannot be rendered: Range too big"),
    ],
)
def test_a_template_that_fails_or_reaches_out_of_its_sandbox_is_named(copy: Path, template: str, message: str):
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        HuggingFaceTokenizer(copy, chat=True).encode_prompt("2")


def test_a_template_may_mark_what_is_generated_and_write_json(copy: Path):
    template = "{% for m in messages %}{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}"
    (copy / "chat_template.jinja").write_text(template)
    assert HuggingFaceTokenizer(copy, chat=True).encode_prompt("é < 2") == QWEN.encode('"é < 2"')


def test_the_fingerprint_depends_on_contents_and_fields_only(copy: Path):
    def now(**fields: Any) -> str:
        return HuggingFaceTokenizer(copy, **fields).fingerprint()

    base = now(chat=True)
    assert base == HuggingFaceTokenizer(FOLDERS / "qwen3", chat=True).fingerprint()  # independent of the location
    fields: list[dict[str, Any]] = [{}, {"chat": True, "thinking": True}, {"chat": True, "system": "Be brief."}]
    seen = {base, *(now(**one) for one in fields)}
    plain = now()
    (copy / "chat_template.jinja").write_text((copy / "chat_template.jinja").read_text() + " ")
    seen.add(now(chat=True))
    assert now() == plain  # an unused template does not count
    change(copy / "tokenizer_config.json", bos_token="<|im_start|>")
    seen.add(now(chat=True))
    change(copy / "generation_config.json", eos_token_id=321)
    seen.add(now(chat=True))
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    seen.add(now(chat=True))
    assert len(seen) == 1 + len(fields) + 4

"""Rows of data files: every usual format is read, and a row that cannot be read is named with its place."""

import csv
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_llm.tasks.tables import read_files, rows_of

ROWS = [
    {"question": "Is 1, 2\nor 3 odd?", "answer": "1"},
    {"question": "\u2028\u0085 \u20ac\N{SNAKE}?", "answer": "007"},
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1)


def read(path: Path) -> list[Any]:
    return [row.fields for row in rows_of(read_files(path))]


def places(path: Path) -> list[str]:
    return [row.place.removeprefix(f"{path.parent}/") for row in rows_of(read_files(path))]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(path: Path, rows: list[dict], separator: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def save_to_disk(folder: Path, rows: list[dict]) -> Path:
    """Write what `datasets.Dataset.save_to_disk` writes: two Arrow streams and their list."""
    folder.mkdir(parents=True)
    names = [f"data-0000{n}-of-00002.arrow" for n in range(2)]
    for name, part in zip(names, (rows[:1], rows[1:]), strict=True):
        table = pyarrow.Table.from_pylist(part)
        with pyarrow.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def write_all(folder: Path, rows: list[dict]) -> list[Path]:
    """Write rows in all formats."""
    (folder / "a.jsonl").write_text(lines(rows), encoding="utf-8")
    (folder / "a.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    write_csv(folder / "a.csv", rows)
    write_csv(folder / "a.tsv", rows, "\t")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    return [folder / f"a.{suffix}" for suffix in ("jsonl", "json", "csv", "tsv", "parquet")]


def test_all_formats_hold_the_same_rows_packed_or_not(tmp_path: Path):
    for path in write_all(tmp_path, ROWS):
        packed = path.with_name(f"{path.name}.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert read(path) == read(packed) == ROWS
    assert read(save_to_disk(tmp_path / "saved", ROWS)) == ROWS


@settings(max_examples=30)
@given(st.lists(st.fixed_dictionaries({"question": TEXTS, "answer": TEXTS}), min_size=1, max_size=4))
def test_every_text_is_read_as_written(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]):
    for path in write_all(tmp_path_factory.mktemp("texts"), rows):
        assert read(path) == rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", "\n \n\n"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
def test_line_ends_blank_lines_and_a_mark_of_utf8_are_no_content(tmp_path: Path, begin: bytes, end: str, last: str):
    text = ('{"a": 1}\n\n\n{"a": "x\u2028y\u2029z\x85"}' + last).replace("\n", end)
    (tmp_path / "a.jsonl").write_bytes(begin + text.encode())
    assert read(tmp_path / "a.jsonl") == [{"a": 1}, {"a": "x\u2028y\u2029z\x85"}]
    assert places(tmp_path / "a.jsonl") == ["a.jsonl:1", "a.jsonl:4"]


def test_files_that_were_joined_keep_no_marks_of_utf8(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    assert read(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


def test_places_are_lines_items_and_rows(tmp_path: Path):
    rows = [{"a": "one\ntwo"}, {"a": "three"}]
    first = {path.suffix: places(path)[1] for path in write_all(tmp_path, rows)}
    assert first == {
        ".jsonl": "a.jsonl:2",
        ".json": "a.json, item 2",
        ".csv": "a.csv:4",
        ".tsv": "a.tsv:4",
        ".parquet": "a.parquet, row 2",
    }


def test_a_pattern_reads_all_its_files_in_order(tmp_path: Path):
    for number in (1, 0):
        (tmp_path / f"train-{number}.jsonl").write_text(f'{{"a": {number}}}\n')
    (tmp_path / "test-0.jsonl").write_text('{"a": 2}\n')
    assert read(tmp_path / "train-*.jsonl") == [{"a": 0}, {"a": 1}]
    assert read_files(tmp_path / "valid-*.jsonl") == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1]", "list instead of a JSON object"),
        (b'{"a": ', "Expecting value: line 1 column 7"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": "\xff"}', "expected one JSON object per line, in UTF-8"),
        (b'{"a": [{"b": 1, "b": 2}]}', "the key 'b' stands twice in the object {'b': 2}; expected one JSON object"),
        (b'{"a": ["\\ud800"]}', "not one half of its surrogate pair"),
        (b'{"a": "\\uDC00\\uD83D"}', "not one half of its surrogate pair"),
    ],
)
def test_a_line_that_is_no_object_keeps_its_place_and_the_others(tmp_path: Path, line: bytes, reason: str):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\\ud83d\\ude00"}\n' + line + b'\n{"a": 1}')
    first, wrong, last = rows_of(read_files(tmp_path / "a.jsonl"))
    assert (first.fields, last.fields) == ({"a": "\N{GRINNING FACE}"}, {"a": 1})
    assert reason in str(wrong.fields)
    assert wrong.place == f"{tmp_path}/a.jsonl:2"


def test_separators_of_spreadsheets_are_read(tmp_path: Path):
    (tmp_path / "a.csv").write_text("q;a\n1, 2?;3\n")
    (tmp_path / "b.csv").write_text("q\ta\n1, 2?\t3\n")
    (tmp_path / "one.csv").write_text("q\n3; 4\n")
    assert read(tmp_path / "a.csv") == read(tmp_path / "b.csv") == [{"q": "1, 2?", "a": "3"}]
    assert read(tmp_path / "one.csv") == [{"q": "3; 4"}]


def test_values_of_csv_must_fit_the_header(tmp_path: Path):
    (tmp_path / "a.csv").write_text('q,a\n"1,\n2",3\n4\n\n5,6\n')
    first, wrong, last = rows_of(read_files(tmp_path / "a.csv"))
    assert (first.fields, last.fields) == ({"q": "1,\n2", "a": "3"}, {"q": "5", "a": "6"})
    assert (wrong.place, str(wrong.fields)) == (f"{tmp_path}/a.csv:4", "1 values for the 2 columns q, a")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "is empty"),
        ("a.csv", b"q,a\n", "is empty"),
        ("a.csv", b"q,q\n1,2\n", "names a column twice: q, q"),
        ("a.csv", b'q\n"1', "cannot be read as CSV"),
        ("a.csv", b"q\n\xff\n", "cannot be read as CSV"),
        ("a.json", b'[{"a": 1}', "begins as a JSON list, but cannot be read as one"),
        ("a.json", b'[{"a": 1, "a": 2}]', "the key 'a' stands twice in the object {'a': 2}"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-9], "cannot be unpacked"),
        ("a.parquet", b"PAR1 and no more", "cannot be read after row 0"),
        ("a.arrow", b"nothing", "cannot be read after row 0"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} ") as caught:
        read(tmp_path / name)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("0.1", 0.1),
        ("27.0", 27.0),
        ("0.10000000000000001", 0.1),
        ("12345678901234567.89", Decimal("12345678901234567.89")),
        ("0.1000000000000000055", Decimal("0.1000000000000000055")),
        ("1e400", Decimal("1e400")),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_numbers_of_json_are_exact(tmp_path: Path, written: str, read_as: object):
    for name, text in (("a.jsonl", f'{{"a": {written}}}'), ("a.json", f'[{{"a": {written}}}]')):
        (tmp_path / name).write_text(text)
        ((found,),) = (row.values() for row in read(tmp_path / name))
        assert (found, type(found)) == (read_as, type(read_as))


def test_a_saved_selection_of_rows_is_refused(tmp_path: Path):
    save_to_disk(tmp_path / "a", ROWS)
    state = json.loads((tmp_path / "a" / "state.json").read_text())
    (tmp_path / "a" / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(ValueError, match=r"state.json selects rows by _indices_data_files.*flatten_indices"):
        read(tmp_path / "a")


def test_a_folder_of_splits_and_one_of_files_say_what_to_name(tmp_path: Path):
    save_to_disk(tmp_path / "both" / "train", ROWS)
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match=r"folder for each split, train, test; name one: .*both/train"):
        read(tmp_path / "both")
    with pytest.raises(ValueError, match=r"is a folder \(with both\); name a file in it, or several by a pattern"):
        read(tmp_path)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_all(tmp_path, ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert read(tmp_path / "a.csv") == ROWS
    with pytest.raises(ImportError, match=r"pip install 'rl_llm\[data\]'"):
        read(tmp_path / "a.parquet")

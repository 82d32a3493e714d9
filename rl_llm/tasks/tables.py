"""Rows of data files as people have them: JSONL, JSON lists, CSV, TSV, parquet, and folders of `save_to_disk`.

Any of them may be packed with gzip. The format of a text is decided by its content and suffix, never by a setting. A
row keeps its place in the file, so that every later error can name it. pyarrow is imported at first use.
"""

import csv
import gzip
import importlib
import io
import json
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from decimal import Context, Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

TextRecord = Mapping[str, str]
Files = Mapping[Path, bytes]
Fields = Mapping[str, Any]

GZIP, PARQUET, ARROW_FILE = b"\x1f\x8b", b"PAR1", b"ARROW1"
EXACT = Context(prec=10_000, Emax=10**6, Emin=-(10**6), traps=[])  # digits of numbers in JSON
SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Row(NamedTuple):
    """One row of a file: its place, and its fields or the reason why it has none."""

    place: str
    fields: Fields | ValueError


class Parsed(NamedTuple):
    """One row and the record made of it, or the reason why there is none, with the place."""

    place: str
    fields: Fields
    record: TextRecord | ValueError


def read_files(path: str | Path, missing: str = "") -> Files:
    """Read the file of a path, all files of a pattern such as `train-*.parquet`, or a folder of `save_to_disk`.

    If there is no such file, raises FileNotFoundError with the text `missing`, or returns nothing without that text.
    Raises ValueError for a folder of another kind.
    """
    path = Path(path)
    if path.is_dir():
        return {file: file.read_bytes() for file in _saved_to_disk(path)}
    found = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    files = {file: file.read_bytes() for file in found if file.is_file()}
    if missing and not files:
        raise FileNotFoundError(missing)
    return files


def rows_of(files: Files) -> Iterator[Row]:
    """Yield the rows of all files in order. Blank lines are skipped.

    Raises ValueError naming a file that is empty or cannot be read as a whole.
    """
    for path, packed in files.items():
        content = _unpacked(path, packed) if packed.startswith(GZIP) else packed
        row = None
        for row in _read_one(path, content.removeprefix(BOM_UTF8)):
            yield row
        if row is None:
            raise ValueError(f"{path} is empty; expected one JSON object per line, a JSON list, CSV or parquet")


def parse_rows(files: Files, parse: Callable[[Fields], TextRecord]) -> Iterator[Parsed]:
    """Yield every row with its record, or with a ValueError that names place, reason and remedy."""
    for place, fields in rows_of(files):
        try:
            if isinstance(fields, ValueError):
                raise fields
            record = parse(fields)
        except ValueError as error:
            yield Parsed(place, {} if isinstance(fields, ValueError) else fields, ValueError(f"{place}: {error}"))
        else:
            yield Parsed(place, fields, record)


def text_of(found: Fields, field: str) -> str:
    """Return the text of a field. Raises ValueError if it is missing or empty."""
    if field not in found:
        raise ValueError(f"the field {field!r} is missing; there are {', '.join(map(repr, found)) or 'none'}")
    text = found[field]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the field {field!r} is {text!r}; expected a text that is not empty")
    return text


def import_extra(name: str) -> ModuleType:
    """Import a package of the extra `data`. Raises ImportError naming the extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this data needs {name} ({error}): pip install 'rl_llm[data]'") from error


def _saved_to_disk(folder: Path) -> list[Path]:
    """Files that `datasets.Dataset.save_to_disk` lists in a folder's state.json."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        raise ValueError(f"{folder} has a folder for each split, {', '.join(splits)}; name one: {folder / splits[0]}")
    if not (folder / "state.json").is_file():
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        raise ValueError(
            f"{folder} is a folder (with {names or 'nothing'}); name a file in it, or several by a pattern such as "
            f"{folder / 'train-*.parquet'}"
        )
    state = json.loads((folder / "state.json").read_text())
    if state.get("_indices_data_files"):
        raise ValueError(
            f"{folder / 'state.json'} selects rows by _indices_data_files, which would be ignored; save the data set "
            "again after dataset.flatten_indices()"
        )
    return [folder / file["filename"] for file in state["_data_files"]]


def _unpacked(path: Path, packed: bytes) -> bytes:
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}; copy the file again") from error


def _read_one(path: Path, content: bytes) -> Iterator[Row]:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if content.startswith((PARQUET, ARROW_FILE)) or suffix == ".arrow":
        return _arrow_rows(path, content)
    if suffix in SEPARATORS:
        return _csv_rows(path, content, SEPARATORS[suffix])
    return _list_items(path, content) if content.lstrip().startswith(b"[") else _lines(path, content)


def _lines(path: Path, content: bytes) -> Iterator[Row]:
    # str.splitlines would also cut at U+2028, U+2029 and U+0085, which may stand in a JSON string.
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield Row(f"{path}:{number}", _json(line.removeprefix(BOM_UTF8)))


def _json(line: bytes) -> Fields | ValueError:
    try:
        return _object(_DECODER.decode(line.decode()), line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"{error}; expected one JSON object per line, in UTF-8")


def _number(text: str) -> float | Decimal:
    """Read a number: a Decimal if a float would lose digits, as 0.1000000000000000055 does."""
    value, exact = float(text), EXACT.create_decimal(text)
    return value if exact in (Decimal(repr(value)), Decimal(f"{value:.17g}")) else exact


def _unique(pairs: list[tuple[str, Any]]) -> Fields:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in the object {str(found)[:60]}")
    return found


_DECODER = json.JSONDecoder(parse_float=_number, object_pairs_hook=_unique)


def _object(found: Any, source: bytes) -> Fields | ValueError:
    """Return a JSON object, or the reason why it is none. One half of a surrogate pair is no text in any encoding."""
    if not isinstance(found, dict):
        return ValueError(f"{type(found).__name__} instead of a JSON object")
    try:
        if b"\\ud" in source or b"\\uD" in source:
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return ValueError(f"{error}; write the whole character, not one half of its surrogate pair")
    return found


def _list_items(path: Path, content: bytes) -> Iterator[Row]:
    try:
        items = _DECODER.decode(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} begins as a JSON list, but cannot be read as one: {error}") from error
    for number, item in enumerate(items, 1):
        yield Row(f"{path}, item {number}", _object(item, content))


def _csv_rows(path: Path, content: bytes, separator: str) -> Iterator[Row]:
    """Read with Python's csv, which keeps every value as written: 007 stays 007."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default refuses long texts
    try:
        text = content.decode()
        if separator not in (header := text.partition("\n")[0]):  # spreadsheets of many countries write semicolons
            separator = next((other for other in ";\t," if other in header), separator)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        names = next(lines, [])
        if len(set(names)) < len(names):
            raise ValueError(f"the header names a column twice: {', '.join(names)}")
        begin = lines.line_num + 1
        for values in lines:
            place = f"{path}:{begin}"
            begin = lines.line_num + 1
            if values and len(values) != len(names):
                yield Row(place, ValueError(f"{len(values)} values for the {len(names)} columns {', '.join(names)}"))
            elif values:
                yield Row(place, dict(zip(names, values, strict=True)))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error


def _arrow_rows(path: Path, content: bytes) -> Iterator[Row]:
    arrow = import_extra("pyarrow")
    number = 0
    try:
        for batch in _batches(content):
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", fields)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read after row {number}: {error}") from error


def _batches(content: bytes) -> Iterator[Any]:
    if content.startswith(PARQUET):
        file = import_extra("pyarrow.parquet").ParquetFile(import_extra("pyarrow").BufferReader(content))
        return iter(file.iter_batches(batch_size=4096))
    ipc = import_extra("pyarrow.ipc")
    if content.startswith(ARROW_FILE):
        file = ipc.open_file(content)
        return (file.get_batch(index) for index in range(file.num_record_batches))
    return iter(ipc.open_stream(content))

"""Checked records of a JSONL file, prepared once: ArrayRecord files that a tfds builder writes and grain reads.

A prepared copy belongs to the exact content of its file, and to whatever else decided the records. TensorFlow is not
needed. tfds and grain are imported when records are asked for, so that a grading worker never pays for them.
"""

import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

Record = Mapping[str, str]
Splits = Mapping[str, list[Record]]


@dataclass(frozen=True)
class Prepared:
    """The prepared copy of a file: `fields` of the records of each split."""

    path: Path
    fields: tuple[str, ...]
    builder: Any

    @property
    def sizes(self) -> dict[str, int]:
        """How many records each split has."""
        return {name: info.num_examples for name, info in self.builder.info.splits.items()}

    def read(self, split: str, seed: int | None = None, count: int | None = None) -> list[Record]:
        """The first `count` records (None: all) of a split in the file's order, or in that which a seed gives.

        Raises ValueError for a damaged copy.
        """
        grain = _import_grain()
        # Threads: grain's worker processes cost more than files of this size take to read.
        threads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=64)
        try:
            records = grain.MapDataset.source(self.builder.as_data_source(split))
            records = records if seed is None else records.seed(seed).shuffle()
            return [self._decode(record) for record in records[:count].to_iter_dataset(threads)]
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(
                f"the prepared copy of {self.path} is damaged ({error}): delete {self.builder.data_path}, and it "
                "will be prepared again"
            ) from error

    def _decode(self, record: Mapping[str, bytes | None]) -> Record:
        """A stored record as text. A truncated ArrayRecord file gives None for its fields, without an error."""
        if any(record.get(field) is None for field in self.fields):
            raise ValueError(f"a record has lost its text: {dict(record)}")
        return {field: (record[field] or b"").decode() for field in self.fields}


def prepare(
    path: Path,
    content: bytes,
    fields: tuple[str, ...],
    records: Callable[[], Splits],
    data_dir: str | Path | None,
    decided_by: str = "",
) -> Prepared:
    """The prepared copy of a file's content; `records` makes it where there is none yet, which may raise ValueError.

    data_dir: where copies are kept, by default the folder `.tfds` beside the file. decided_by: what the records depend
    on besides the content.
    """
    digest = hashlib.sha256(content + b"\0" + decided_by.encode()).hexdigest()
    folder = Path(data_dir or path.parent / ".tfds") / f"{path.stem}-{digest[:16]}"
    builder = _builder_class()({}, fields, folder)
    if not builder.data_path.exists():  # tfds makes it in one step, at the end.
        splits = records()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "preparing.lock"):  # Several processes may start on one file.
            builder = _builder_class()(splits, fields, folder)
            _write(builder)
    return Prepared(path, fields, builder)


def parse_lines(path: Path, content: bytes, parse: Callable[[dict[str, Any], int], Record]) -> Iterator[Record]:
    """What `parse(object, line number)` makes of each line's JSON object. Raises ValueError naming file, line and
    reason.
    """
    lines = content.splitlines()
    if not lines:
        raise ValueError(f"{path} is empty: it needs one JSON object on each line")
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line.decode())
            if not isinstance(found, dict):
                raise ValueError(f"{type(found).__name__} instead of a JSON object")
            record = parse(found, number)
            "".join(record.values()).encode()  # a lone surrogate is found here, where its line is known
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        yield record


def text_of(found: Mapping[str, Any], field: str) -> str:
    """The text of a field. Raises ValueError where there is none, or an empty one."""
    if field not in found:
        raise ValueError(f"the field {field!r} is missing; there are {', '.join(map(repr, found)) or 'none'}")
    text = found[field]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the field {field!r} is {text!r}: it must be a text that is not empty")
    return text


@functools.cache
def _builder_class() -> Any:
    tfds = _import_tfds()

    class JsonlBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[name-defined, call-arg]
        """Writes checked records, by split, as ArrayRecord."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, splits: Splits, fields: Sequence[str], folder: Path) -> None:
            self._splits, self._fields = splits, fields
            super().__init__(data_dir=folder, file_format="array_record")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in self._fields})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Record]]]:
            return {split: self._generate_examples(records) for split, records in self._splits.items()}

        def _generate_examples(self, records: list[Record]) -> Iterator[tuple[int, Record]]:
            yield from enumerate(records)

    return JsonlBuilder


def _write(builder: Any) -> None:
    tfds = _import_tfds()
    # No look-up of ready-made copies in the cloud, and no bars: this takes a moment.
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare(download_config=settings)


def _import_tfds() -> ModuleType:
    try:
        import tensorflow_datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(f"JSONL data need tensorflow-datasets ({error}): pip install 'rl_llm[data]'") from error
    return tensorflow_datasets


def _import_grain() -> ModuleType:
    try:
        import grain  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(f"JSONL data need grain ({error}): pip install 'rl_llm[data]'") from error
    return grain

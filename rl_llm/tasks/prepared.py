"""Checked records of a data file, prepared once as ArrayRecord files: tfds writes them, grain reads them.

A prepared copy belongs to the exact content of its file and to everything else that decided the records. TensorFlow is
not needed. tfds and grain are imported at first use, so grading workers never load them.
"""

import contextlib
import functools
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from rl_llm.tasks.tables import TextRecord, import_extra

Splits = Mapping[str, list[TextRecord]]


@dataclass(frozen=True)
class PreparedCopy:
    """Prepared copy of a file: the `fields` of all records, by split."""

    path: Path
    fields: tuple[str, ...]
    builder: Any

    @property
    def sizes(self) -> dict[str, int]:
        """Number of records in each split."""
        return {name: info.num_examples for name, info in self.builder.info.splits.items()}

    def read(self, split: str, seed: int | None = None, count: int | None = None) -> list[TextRecord]:
        """Read the first `count` records (None: all) of a split, in file order or shuffled by a seed.

        Raises ValueError for a damaged copy.
        """
        grain = import_extra("grain")
        # Threads: starting grain's worker processes takes longer than reading files of this size.
        threads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=64)
        try:
            records = grain.MapDataset.source(self.builder.as_data_source(split))
            records = records if seed is None else records.seed(seed).shuffle()
            found = list(records[:count].to_iter_dataset(threads))
            # A truncated ArrayRecord file gives None for its fields, without an error.
            if any(record.get(field) is None for record in found for field in self.fields):
                raise ValueError("a record has lost its text")
            return [{field: record[field].decode() for field in self.fields} for record in found]
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(
                f"the prepared copy of {self.path} is damaged ({error}); delete {self.builder.data_path} to prepare it "
                "again"
            ) from error


def prepare_copy(
    path: Path,
    files: Sequence[tuple[Path, bytes]],
    fields: tuple[str, ...],
    records: Callable[[], Splits],
    data_dir: str | Path | None,
    decided_by: str,
) -> PreparedCopy:
    """Return the prepared copy of files. A missing one is made from `records()`, which may raise ValueError.

    Copies are kept in `data_dir`, by default in the folder `.tfds` beside the file. `decided_by` identifies everything
    besides the files that the records depend on, the version of the parser included.
    """
    digests = [(file.suffix, hashlib.sha256(content).hexdigest()) for file, content in files]
    digest = hashlib.sha256(repr((digests, decided_by)).encode()).hexdigest()
    folder = Path(data_dir or path.parent / ".tfds") / f"{path.stem.replace('*', '_')}-{digest[:16]}"
    builder = _builder_class()({}, fields, folder)
    if not builder.data_path.exists():  # tfds creates it atomically, at the end
        splits = records()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "preparing.lock"):  # several processes may start on one file
            builder = _builder_class()(splits, fields, folder)
            # No look-up of copies in the cloud, and no progress bars.
            settings = import_extra("tensorflow_datasets").download.DownloadConfig(try_download_gcs=False)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                builder.download_and_prepare(download_config=settings)
    return PreparedCopy(path, fields, builder)


@functools.cache
def _builder_class() -> Any:
    tfds: Any = import_extra("tensorflow_datasets")

    class JsonlBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Writes checked records, by split, as ArrayRecord."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, splits: Splits, fields: Sequence[str], folder: Path) -> None:
            self._splits, self._fields = splits, fields
            super().__init__(data_dir=folder, file_format="array_record")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in self._fields})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, TextRecord]]]:
            return {split: self._generate_examples(records) for split, records in self._splits.items()}

        def _generate_examples(self, records: list[TextRecord]) -> Iterator[tuple[int, TextRecord]]:
            yield from enumerate(records)

    return JsonlBuilder

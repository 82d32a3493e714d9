"""Fixtures of the tests of run folders: the finished run, and a copy of it to damage."""

import shutil
from pathlib import Path

import pytest
from program import Finished, uninterrupted


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The tiny run, never interrupted."""
    return uninterrupted(tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(whole: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    shutil.copytree(whole.folder, tmp_path / "run")
    return tmp_path / "run"

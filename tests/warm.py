"""Commands run one after another in one process, where imports and compiled programs are reused.

Each pytest worker has one such process. It ends with its standard input, and is replaced when it has grown large.
"""

import atexit
import multiprocessing
import os
import resource
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LARGE = 3 * 2**20  # KiB of memory after which a process gets no more commands
SPAWN = multiprocessing.get_context("spawn")
_open: list[tuple[Any, Connection]] = []


def run(arguments: list[str], environment: dict[str, str], patience: float) -> tuple[int, str, str]:
    """Run `rl-llm ARGUMENTS`: exit code, standard output, standard error. A process that hangs is killed."""
    if not _open:
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=_serve, args=(there, environment), daemon=False)
        process.start()
        there.close()
        _open.append((process, here))
    process, connection = _open[0]
    with TemporaryDirectory() as folder:
        connection.send((arguments, folder))
        try:
            if not connection.poll(patience):
                raise TimeoutError(f"rl-llm {arguments} hangs")
            code, memory = connection.recv()
        except BaseException:
            _close(kill=True)
            raise
        if memory > LARGE:
            _close()
        return code, Path(folder, "stdout").read_text(), Path(folder, "stderr").read_text()


@atexit.register
def _close(kill: bool = False) -> None:
    while _open:
        process, connection = _open.pop()
        connection.close()
        if kill:
            process.kill()
        process.join()


def _serve(connection: Connection, environment: dict[str, str]) -> None:
    """Run commands until the connection closes."""
    os.environ.update(environment)
    from rl_llm.cli import main

    while True:
        try:
            arguments, folder = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        for number, name in ((1, "stdout"), (2, "stderr")):
            descriptor = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, number)
            os.close(descriptor)
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except Exception:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send((code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

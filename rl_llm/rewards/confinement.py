"""Confines a grading process: code in a response finds nothing to take, and nothing to break.

On Linux, Landlock forbids writes outside one folder and signals to other processes. A seccomp filter forbids sockets,
changes of file modes, and new sessions (children die with their group). Neither needs root, and children inherit both.
On other systems and older kernels, limits of memory and file sizes remain.
"""

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterator

MEMORY = 4 << 30  # bytes of address space, beyond the imports
LARGEST_FILE = 16 << 20  # bytes; 0 where writes cannot be confined

_NO_NEW_PRIVILEGES, _SECCOMP, _SUBREAPER = 38, 22, 36  # options of prctl
_CREATE_RULESET, _ADD_RULE, _RESTRICT = 444, 445, 446  # system calls of Landlock
_SIGNALS_SINCE = 6  # version of Landlock that knows signals
# Numbers of socket, setsid, setpgid, io_uring_setup and each chmod, after the audit number of their architecture.
_FORBIDDEN = {
    "x86_64": (0xC000003E, (41, 112, 109, 425, 90, 91, 268, 452)),
    "aarch64": (0xC00000B7, (198, 157, 154, 425, 52, 53, 452)),
}
_DENIED, _ALLOWED = 0x00050000 | 13, 0x7FFF0000  # EACCES, "Permission denied"


def confine(folder: str) -> list[str]:
    """Confine this process, and what it starts, to writes in `folder`. Returns the protections that are missing.

    Call it after the imports: memory is limited beyond what they took, and they may write caches.
    """
    missing = list(_call_kernel(folder)) if platform.system() == "Linux" else ["writes", "network", "signals", "memory"]
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0 if "writes" in missing else LARGEST_FILE}
    if "memory" not in missing:
        with open("/proc/self/statm") as file:
            limits[resource.RLIMIT_AS] = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    return missing


def _call_kernel(folder: str) -> Iterator[str]:
    """Apply Landlock and seccomp, and yield the protections that this kernel refuses."""
    call = ctypes.CDLL(None, use_errno=True)
    call.prctl(_SUBREAPER, 1, 0, 0, 0)  # orphans become children of this process, which it can count
    call.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    version = call.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1 or not _landlock(call, version, folder):
        yield from ("writes", "signals")
    elif version < _SIGNALS_SINCE:
        yield "signals"
    if platform.machine() not in _FORBIDDEN or not _seccomp(call, *_FORBIDDEN[platform.machine()]):
        yield "network"


def _landlock(call: ctypes.CDLL, version: int, folder: str) -> bool:
    writes = 1 << 1 | sum(1 << right for right in range(4, 13))  # write, remove, and make files of each kind
    writes |= (version >= 2) << 13 | (version >= 3) << 14  # link between folders, truncate
    ruleset = struct.pack("=QQQ", writes, 0, 2 if version >= _SIGNALS_SINCE else 0)
    rules = call.syscall(_CREATE_RULESET, ruleset, len(ruleset), 0)
    done = rules >= 0
    for path, rights in ((folder, writes), (os.devnull, writes & (1 << 1 | 1 << 14))):
        place = os.open(path, os.O_PATH)
        done = done and call.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, place), 0) == 0
        os.close(place)
    done = done and call.syscall(_RESTRICT, rules, 0) == 0
    if rules >= 0:
        os.close(rules)
    return done


def _seccomp(call: ctypes.CDLL, architecture: int, numbers: tuple[int, ...]) -> bool:
    """Deny the calls of these numbers, and all calls in the conventions of another architecture (32 bits)."""
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # instructions of the Berkeley packet filter
    count = len(numbers)
    program = [(load, 0, 0, 4), (equal, 0, count + 3, architecture), (load, 0, 0, 0), (at_least, count + 1, 0, 1 << 30)]
    program += [(equal, count - place, 0, number) for place, number in enumerate(numbers)]
    program += [(give, 0, 0, _ALLOWED), (give, 0, 0, _DENIED)]
    code = b"".join(struct.pack("=HBBI", *step) for step in program)
    text = ctypes.create_string_buffer(code)
    header = struct.pack("@HP", len(program), ctypes.addressof(text))
    return bool(call.prctl(_SECCOMP, 2, header, 0, 0) == 0)

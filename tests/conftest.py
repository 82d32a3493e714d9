"""What every test runs under: the CPU as eight devices, a strict JAX, the same examples in every run."""

import contextlib
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax

# Tests share helpers across rooms, and the tools that write documentation are tested, too.
HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "docs" / "tools"), *(str(room) for room in sorted(HERE.iterdir()) if room.is_dir())]

# Now, as its logging closes the handlers that are there: absl's, later, would take stderr along.
with contextlib.suppress(ImportError):  # the extra `slurm`
    import submitit  # noqa: F401

# A shell's background job ignores Ctrl-C, and what it starts inherits that; programs that tests interrupt must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# By configuration, not by environment variables: a program that a test starts must see what its users see.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of the time is compilation. A cached program is the compiled one, bit for bit; its key covers the
# versions, the flags and the machine's features, so a stale one is never taken.
jax.config.update("jax_compilation_cache_dir", str(HERE.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("repeatable")

"""Set up every test: the CPU as eight devices, cheap compilation, strict JAX, the same examples in every run."""

import contextlib
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# The code that tests run is remembered beside the compiled programs, not in the state of the user who runs them.
os.environ["XDG_STATE_HOME"] = str(Path(__file__).parent.parent / ".cache" / "state")

# Most of the time is compilation, and LLVM's and XLA's expensive passes do not pay on tiny programs: compiling takes a
# fifth of the time without them. Later versions of jaxlib lack a flag, and round differently on each mesh at level 0.
# `make nightly` sets XLA_FLAGS to nothing and compiles as users do.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false",
    )

import hypothesis
import jax

# Tests share helpers across rooms, and the tools that write documentation are tested.
HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "docs" / "tools"), *(str(room) for room in sorted(HERE.iterdir()) if room.is_dir())]

# Imported first: its logging closes existing handlers, and closing absl's would close stderr.
with contextlib.suppress(ImportError):  # the extra `slurm`
    import submitit  # noqa: F401

# Background jobs of a shell ignore Ctrl-C and their children inherit that. Programs that tests interrupt must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# By configuration, not by environment variables, which the programs that tests start would inherit.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# A cached program is the compiled one, bit for bit. Its key covers versions, flags and the machine's features, so a
# stale program is never used. Entries are shared by all processes of a session and by later sessions.
jax.config.update("jax_compilation_cache_dir", str(HERE.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("repeatable")

"""Environment variables for libtpu on a machine without TPUs. JAX reads them when it starts."""

import os
from importlib.util import find_spec
from pathlib import Path

GOOGLE = "0x1ae0"  # PCI vendor


def quieten_absent_tpu() -> None:
    """Silence libtpu where it is installed as a compiler only.

    Without these variables it looks for this machine's place in a slice and complains on the standard error of every
    process that it has none.
    """
    if find_spec("libtpu") is None or _may_have_tpu():
        return
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v6e-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")


def compile_only() -> None:
    """Run this process on CPU with libtpu as a compiler, which several processes may load at once."""
    quieten_absent_tpu()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"


def _may_have_tpu() -> bool:
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    devices = (*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("*"))
    return bool(devices) or any(vendor.read_text().strip() == GOOGLE for vendor in vendors)

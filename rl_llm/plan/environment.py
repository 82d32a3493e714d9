"""What libtpu is told where there is no TPU. It reads environment variables when JAX starts."""

import os
from importlib.util import find_spec
from pathlib import Path

GOOGLE = "0x1ae0"  # PCI vendor


def quieten_absent_tpu() -> None:
    """Where libtpu is installed as a compiler and there is no TPU, it looks for this machine's part in a slice and
    complains that there is none, on standard error of every process: tell it something.
    """
    if find_spec("libtpu") is None or _may_have_tpu():
        return
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v6e-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")


def compile_only() -> None:
    """This process runs on CPU, and libtpu is only its compiler, of which several processes may have one at a time."""
    quieten_absent_tpu()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"


def _may_have_tpu() -> bool:
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    devices = (*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("*"))
    return bool(devices) or any(vendor.read_text().strip() == GOOGLE for vendor in vendors)

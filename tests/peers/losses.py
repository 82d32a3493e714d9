"""Peers' losses, put to our components."""

from collections.abc import Callable, Mapping

import numpy as np
from peers.case import Case

MATCHERS: dict[tuple[str, str], Callable[[Case], Mapping[str, np.ndarray]]] = {}
LEFT_OUT: dict[str, str] = {}

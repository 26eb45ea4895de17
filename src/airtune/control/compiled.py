"""Functions compiled by Numba, with their types kept."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function compiled on its first call; machine code is cached on disk, and no Python object passes through."""
    return numba.njit(cache=True, error_model="numpy")(function)

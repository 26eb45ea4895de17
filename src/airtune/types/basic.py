"""Array shapes by their symbols, read-only dataclasses, and the one error that is told to the user."""

from dataclasses import fields
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

if TYPE_CHECKING:
    FloatK: TypeAlias = NDArray[np.float64]
    FloatM: TypeAlias = NDArray[np.float64]
    FloatKM: TypeAlias = NDArray[np.float64]
    IntK: TypeAlias = NDArray[np.int64]
    IntM: TypeAlias = NDArray[np.int64]
    BoolK: TypeAlias = NDArray[np.bool_]
    BoolKM: TypeAlias = NDArray[np.bool_]
else:
    FloatK = Float[np.ndarray, " K"]
    FloatM = Float[np.ndarray, " M"]
    FloatKM = Float[np.ndarray, "K M"]
    IntK = Int[np.ndarray, " K"]
    IntM = Int[np.ndarray, " M"]
    BoolK = Bool[np.ndarray, " K"]
    BoolKM = Bool[np.ndarray, "K M"]


AnyFloat: TypeAlias = float | NDArray[np.float64]


class AirtuneError(Exception):
    """A mistake in the input or the surroundings, told in one line; the command line exits with 2."""


def freeze(instance: object) -> None:
    """Make every array field of a frozen dataclass read-only (call from `__post_init__`)."""
    for one in fields(instance):  # pyright: ignore[reportArgumentType]
        value = getattr(instance, one.name)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False

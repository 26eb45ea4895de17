"""Tensors and JSON values as one blob: safetensors, the values in its metadata. Reading a blob runs no code of it."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from airtune.learning.lora import Adapters


class Malformed(Exception):
    """A blob that is not what it should be; the text says how."""


def pack(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """One blob of finite JSON values and tensors."""
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return save(copies, {"airtune": json.dumps(dict(values), allow_nan=False)})


def unpack(blob: bytes) -> tuple[dict[str, Any], Adapters]:
    """Values and tensors of a blob; raises Malformed, and nothing else, for any bytes that are no such blob."""
    try:
        tensors = load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        values = json.loads(header["__metadata__"]["airtune"], parse_constant=_refuse)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise Malformed(f"not a blob of tensors and values ({type(error).__name__}: {str(error)[:120]})") from None
    if not isinstance(values, dict):
        raise Malformed("its values are no table")
    return values, tensors


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no finite number")

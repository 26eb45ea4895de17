"""The frozen prefix: hidden states that enter the lowest layer with anything attached, computed once per sample.

Below that layer a sample's hidden states are the same in every step, round and evaluation. They are computed for each
sample alone, so that they do not depend on the batch it first came in, and kept in memory up to a bound, beyond it in
an unnamed temporary file that is gone when the cache or its process ends, however that ends.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from io import FileIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from airtune.learning.data import TokenSet
from airtune.learning.lora import NestedLinear

FLOAT_BYTE = 4


class _Reached(Exception):
    """Carries the hidden states at the layer where a pass was to stop."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows


class _Stop(nn.Module):
    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        raise _Reached(hidden_states)


class _Skip(nn.Module):
    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


class _Given(nn.Module):
    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.rows


class Store:
    """Hidden states [tokens × H] of one token set at one layer, filled sample by sample, in float32.

    Args:
        tokens: the token set, held so that its identity stays its own.
        width: H.
        in_memory: an array; else an unnamed temporary file.
    """

    def __init__(self, tokens: TokenSet, width: int, in_memory: bool) -> None:
        self.tokens = tokens
        self.width = width
        self.known = np.zeros(len(tokens), dtype=np.bool_)
        self._array: NDArray[np.float32] | None = None
        self._file: FileIO | None = None
        if in_memory:
            self._array = np.empty((int(tokens.offsets[-1]), width), dtype=np.float32)
        else:
            self._file = tempfile.TemporaryFile(buffering=0)
            weakref.finalize(self, self._file.close)

    @property
    def in_memory(self) -> bool:
        """Whether the states are in an array, not in a file."""
        return self._array is not None

    def put(self, i: int, rows: NDArray[np.float32]) -> bool:
        """Keep the states [n_i × H] of sample i; returns whether there was room."""
        span = self.tokens.span(i)
        if self._array is not None:
            self._array[span] = rows
        elif self._file is not None:
            try:
                self._file.seek(span.start * self.width * FLOAT_BYTE)
                written = self._file.write(np.ascontiguousarray(rows).data.cast("B"))
            except OSError:
                return False
            if written != rows.nbytes:
                return False
        self.known[i] = True
        return True

    def get(self, index: NDArray[np.int64]) -> Tensor:
        """The states [N × H] of the samples `index`, all known, back to back."""
        lengths = self.tokens.offsets[index + 1] - self.tokens.offsets[index]
        ends = np.cumsum(lengths)
        out = np.empty((int(ends[-1]), self.width), dtype=np.float32)
        for i, length, end in zip(map(int, index), map(int, lengths), map(int, ends), strict=True):
            span, part = self.tokens.span(i), out[end - length : end]
            if self._array is not None:
                part[:] = self._array[span]
            elif self._file is not None:
                self._file.seek(span.start * self.width * FLOAT_BYTE)
                self._file.readinto(part.data.cast("B"))
        return torch.from_numpy(out)


class Prefix:
    """Frozen prefixes of a backbone of known structure.

    Args:
        backbone: the model's own backbone, in float32.
        layers: its layers.
        embeddings: name of its embedding module.
        installed: its adapted layers.
        memory_byte: bound of what is kept in memory, over all token sets and layers.
    """

    def __init__(
        self, backbone: Any, layers: nn.ModuleList, embeddings: str, installed: Iterable[NestedLinear], memory_byte: int
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.embeddings = embeddings
        self.memory_byte = memory_byte
        self.stores: dict[tuple[int, int], Store | None] = {}
        owner = {id(child): j for j, layer in enumerate(layers) for child in layer.modules()}
        self._places = [(nested, owner[id(nested)]) for nested in installed]

    def lowest(self) -> int:
        """The lowest layer with a slice, a rest or a merged change attached; the last one if none has any."""
        attached = (j for nested, j in self._places if nested.a is not None or nested.merged is not None)
        return min(attached, default=len(self.layers) - 1)

    @property
    def held_byte(self) -> int:
        """Memory that stores may fill."""
        return sum(_size_byte(s.tokens, s.width) for s in self.stores.values() if s is not None and s.in_memory)

    def rows(
        self, tokens: TokenSet, index: NDArray[np.int64], depth: int, run: Callable[[NDArray[np.int64]], object]
    ) -> Tensor | None:
        """States [N × H] that enter layer `depth`, back to back; None where they are not kept.

        Args:
            tokens: the samples.
            index: which of them.
            depth: the lowest layer that has anything attached.
            run: runs the backbone on some samples.
        """
        store = self._store(tokens, depth)
        if depth == 0 or store is None:
            return None
        for i in np.unique(index[~store.known[index]]):
            if not store.put(int(i), self.below(depth, lambda i=i: run(np.array([i]))).float().cpu().numpy()):
                self.stores[id(tokens), depth] = None
                return None
        return store.get(index)

    def below(self, depth: int, run: Callable[[], object]) -> Tensor:
        """What enters layer `depth` [N × H] while `run` runs the backbone, without gradient and autocast."""
        layer = self.layers[depth]
        self.layers[depth] = _Stop()
        try:
            with torch.no_grad(), torch.autocast(self.backbone.device.type, enabled=False):
                run()
        except _Reached as reached:
            return reached.rows[0]
        finally:
            self.layers[depth] = layer
        raise RuntimeError(f"layer {depth} was not reached")

    @contextmanager
    def entering(self, depth: int, rows: Tensor) -> Generator[None]:
        """Run the backbone from layer `depth` on, with the states `rows` [N × H] for what enters it."""
        embeddings, below = getattr(self.backbone, self.embeddings), list(self.layers[:depth])
        setattr(self.backbone, self.embeddings, _Given(rows[None].to(self.backbone.device)))
        for j in range(depth):
            self.layers[j] = _Skip()
        try:
            yield
        finally:
            setattr(self.backbone, self.embeddings, embeddings)
            for j, layer in enumerate(below):
                self.layers[j] = layer

    def _store(self, tokens: TokenSet, depth: int) -> Store | None:
        """The states of a token set at a layer; None if the temporary folder has no room for them."""
        key = id(tokens), depth
        if depth and key not in self.stores:
            width = int(self.backbone.config.hidden_size)
            size = _size_byte(tokens, width)
            in_memory = self.held_byte + size <= self.memory_byte
            room = in_memory or shutil.disk_usage(tempfile.gettempdir()).free > size
            self.stores[key] = Store(tokens, width, in_memory) if room else None
        return self.stores.get(key)


def _size_byte(tokens: TokenSet, width: int) -> int:
    return int(tokens.offsets[-1]) * width * FLOAT_BYTE

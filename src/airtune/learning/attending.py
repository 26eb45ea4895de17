"""Attention within short sequences that lie back to back, on a CPU: no padding, no gathering, no mask.

torch's kernel for a CPU works on blocks of 32 queries of rows of one length; with sequences of a dozen tokens most of
its time goes to calls of small products and to cells that nothing reads. These loops, compiled by Numba, run over each
sequence's own tokens. The probabilities are kept for the backward pass: Σ n² per head.
"""

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LONGEST = 128
"""Sequences up to this length: longer ones keep torch's kernel busy, and their Σ n² would take memory."""

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@_compiled
def _softmax(score: Any, scale: Any, causal: bool, window: int, bits: Any) -> None:
    """Softmax of scale · score [n × n] by rows in place, 0 at tokens not seen; eˣ to rounding (Cephes' expf)."""
    n = len(score)
    for i in range(n):
        low, high = max(0, i - window + 1), i + 1 if causal else min(n, i + window)
        most = score[i, low]
        for j in range(low, high):
            most = score[i, j] if score[i, j] > most else most
        for j in range(n):
            score[i, j] = scale * (score[i, j] - most)
    x, power = score.reshape(n * n), bits.view(np.float32)
    for j in range(n * n):
        t = np.float32(0.0) if x[j] > np.float32(0.0) else x[j]
        t = np.float32(-87.0) if t < np.float32(-87.0) else t
        whole = np.floor(t * np.float32(1.44269504088896341) + np.float32(0.5))
        r = t - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
        y = np.float32(1.9875691500e-4)
        y = y * r + np.float32(1.3981999507e-3)
        y = y * r + np.float32(8.3334519073e-3)
        y = y * r + np.float32(4.1665795894e-2)
        y = y * r + np.float32(1.6666665459e-1)
        y = y * r + np.float32(5.0000001201e-1)
        x[j] = y * r * r + r + np.float32(1.0)
        bits[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    for j in range(n * n):
        x[j] *= power[j]
    for i in range(n):
        low, high = max(0, i - window + 1), i + 1 if causal else min(n, i + window)
        score[i, :low] = np.float32(0.0)
        score[i, high:] = np.float32(0.0)
        total = np.float32(0.0)
        for j in range(n):
            total += score[i, j]
        for j in range(n):
            score[i, j] /= total


@_compiled
def _forward(
    q: Any, k: Any, v: Any, start: Any, place: Any, scale: Any, causal: bool, window: int, out: Any, p: Any
) -> None:
    share = len(q) // len(k)
    bits = np.empty(np.max(np.diff(start)) ** 2, np.int32)
    for h in range(len(q)):
        for s in range(len(start) - 1):
            a, z = start[s], start[s + 1]
            score = p[h, place[s] : place[s + 1]].reshape(z - a, z - a)
            np.dot(q[h][a:z], k[h // share][a:z].T, score)
            _softmax(score, scale, causal, window, bits)
            np.dot(score, v[h // share][a:z], out[h][a:z])


@_compiled
def _backward(
    d: Any, q: Any, k: Any, v: Any, p: Any, start: Any, place: Any, scale: Any, dq: Any, dk: Any, dv: Any
) -> None:
    share = len(q) // len(k)
    most = np.max(np.diff(start))
    room, part = np.empty(most**2, np.float32), np.empty((most, q.shape[2]), np.float32)
    for h in range(len(q)):
        g = h // share
        for s in range(len(start) - 1):
            a, z = start[s], start[s + 1]
            n = z - a
            score, ds, to = p[h, place[s] : place[s + 1]].reshape(n, n), room[: n * n].reshape(n, n), part[:n]
            np.dot(score.T, d[h][a:z], to)
            dv[g][a:z] += to
            np.dot(d[h][a:z], v[g][a:z].T, ds)
            for i in range(n):
                total = np.float32(0.0)
                for j in range(n):
                    total += score[i, j] * ds[i, j]
                for j in range(n):
                    ds[i, j] = scale * score[i, j] * (ds[i, j] - total)
            np.dot(ds, k[g][a:z], dq[h][a:z])
            np.dot(ds.T, q[h][a:z], to)
            dk[g][a:z] += to


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, start: NDArray[np.int64], scale: float, causal: bool, window: int
    ) -> Tensor:
        place = np.concatenate([[0], np.cumsum(np.diff(start) ** 2)])
        out, p = torch.empty_like(q), q.new_empty(len(q), int(place[-1]))
        query, key, value = _arrays(q, k, v)
        _forward(query, key, value, start, place, np.float32(scale), causal, window, out.numpy(), p.numpy())
        ctx.save_for_backward(q, k, v, p)
        ctx.given = start, place, np.float32(scale)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        _backward(*_arrays(gradients[0].contiguous(), q, k, v, p), *ctx.given, *_arrays(dq, dk, dv))
        return dq, dk, dv, None, None, None, None


def _arrays(*tensors: Tensor) -> list[NDArray[np.float32]]:
    return [tensor.detach().numpy() for tensor in tensors]


def attends(query: Tensor, value: Tensor, longest: int) -> bool:
    """Whether `attend` takes these tensors, which autocast may have mixed, and sequences of up to `longest` tokens."""
    return longest <= LONGEST and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in (query, value))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: NDArray[np.int64],
    scale: float,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Attention of every token over its own sequence [heads × N × d].

    Args:
        query: [heads × N × d], float32.
        key: [key heads × N × d]; each serves heads / key heads of the queries'.
        value: like `key`.
        start: [S + 1] first token of each sequence, and N.
        scale: factor of the scores.
        causal: a token sees none after it.
        window: tokens less than it apart are seen; None for all.
    """
    reach = int(np.diff(start).max()) if window is None else window
    return _Attend.apply(query.contiguous(), key.contiguous(), value.contiguous(), start, scale, causal, reach)  # pyright: ignore[reportReturnType]

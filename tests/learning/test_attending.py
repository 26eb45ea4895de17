"""Attention of sequences back to back against dense attention of each sequence in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from airtune.learning.attending import LONGEST, attend, attends

LENGTHS = (5, 1, 18, 33)
START = np.concatenate([[0], np.cumsum(LENGTHS)])
CASES = [(False, None, 4), (True, None, 4), (False, 4, 2), (True, 4, 1)]
"""Causal, window and number of key heads, of 4 heads."""


def tensors(key_heads, size=1.0):
    draw = torch.Generator().manual_seed(2)
    shapes = [(heads, int(START[-1]), 8) for heads in (4, key_heads, key_heads, 4)]
    return [size * torch.randn(shape, generator=draw) for shape in shapes]


def dense(q, k, v, scale, causal, window):
    """One sequence after the other, with a mask written out."""
    share, out = len(q) // len(k), []
    for a, z in pairwise(START):
        keys, values = (x[:, a:z].repeat_interleave(share, 0) for x in (k, v))
        i, j = torch.arange(z - a)[:, None], torch.arange(z - a)[None, :]
        seen = torch.ones(z - a, z - a, dtype=torch.bool)
        seen = seen & (j <= i) if causal else seen
        seen = seen & ((i - j).abs() < window) if window else seen
        score = (scale * q[:, a:z] @ keys.transpose(1, 2)).masked_fill(~seen, -torch.inf)
        out.append(score.softmax(-1) @ values)
    return torch.cat(out, 1)


@pytest.mark.parametrize("size", [1.0, 5.0])  # 5: scores around a hundred
@pytest.mark.parametrize("causal, window, key_heads", CASES)
def test_outputs_and_gradients(causal, window, key_heads, size):
    *given, d = tensors(key_heads, size)
    leaves = [x.clone().requires_grad_() for x in given]
    wide = [x.double().requires_grad_() for x in given]
    got, want = attend(*leaves, START, 0.3, causal, window), dense(*wide, 0.3, causal, window)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-5 * size)
    got.backward(d)
    want.backward(d.double())
    for leaf, other in zip(leaves, wide, strict=True):
        bound = 3e-5 * float(other.grad.abs().max())
        torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=1e-3, atol=bound)


def test_what_is_not_finite_shows():
    q, k, v, _ = tensors(4)
    q[1, 7, 3] = torch.nan
    out = attend(q, k, v, START, 0.3)
    assert bool(out[1, 7].isnan().all()) and int(out.isnan().any(-1).sum()) == 1


def test_long_sequences_and_other_precisions_are_left_to_torch():
    q = tensors(4)[0]
    assert attends(q, q, LONGEST) and not attends(q, q, LONGEST + 1) and not attends(q, q.bfloat16(), LONGEST)

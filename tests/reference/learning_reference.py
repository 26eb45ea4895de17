"""Slow, obvious aggregation over dense arrays, entry by entry; shares no code with src.

An upload is (weight, {name: dense array of the module's slice}). A slice covers the leading entries of every axis.
"""

import itertools

import numpy as np


def entries(shape):
    return itertools.product(*(range(size) for size in shape))


def weighted_sum(adapters, uploads):
    """θ_{t+1} − θ_t = Σ_k ω_k s_k Π g_k: what was not delivered counts as zero."""
    change = {name: np.zeros(tensor.shape) for name, tensor in adapters.items()}
    for name, total in change.items():
        for place in entries(total.shape):
            for weight, delta in uploads:
                if name in delta and all(i < size for i, size in zip(place, delta[name].shape, strict=True)):
                    total[place] += weight * float(delta[name][place])
    return change


def renormalised_mean(adapters, uploads):
    """Mean of every entry over the uploads that hold it, by weight; 0 where there are none."""
    change = {name: np.zeros(tensor.shape) for name, tensor in adapters.items()}
    for name, mean in change.items():
        for place in entries(mean.shape):
            held = [
                (weight, float(delta[name][place]))
                for weight, delta in uploads
                if name in delta and all(i < size for i, size in zip(place, delta[name].shape, strict=True))
            ]
            if held:
                mean[place] = sum(w * x for w, x in held) / sum(w for w, _ in held)
    return change


def delivered_share(adapters, uploads):
    """The share of the uploads' weight that holds every entry; 0 where there are none."""
    everything = sum(weight for weight, _ in uploads)
    share = {name: np.zeros(tensor.shape) for name, tensor in adapters.items()}
    for name, part in share.items():
        for place in entries(part.shape):
            for weight, delta in uploads:
                if name in delta and all(i < size for i, size in zip(place, delta[name].shape, strict=True)):
                    part[place] += weight / everything
    return share

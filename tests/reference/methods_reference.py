"""Federated LoRA methods as dense matrices, one rank-one term at a time; shares no code with src.

A device is (weight, {name: dense trained slice}).
"""

import numpy as np


def product(b, a):
    """BA as a sum of outer products."""
    total = np.zeros((b.shape[0], a.shape[1]))
    for i in range(b.shape[1]):
        total += np.outer(b[:, i], a[i])
    return total


def padded(theta, trained, matrix, whole):
    """A and B of a device's whole model: its trained slice over θ (whole) or over zeros."""
    a, b = theta[f"{matrix}.lora_A"].copy(), theta[f"{matrix}.lora_B"].copy()
    if not whole:
        a[:], b[:] = 0.0, 0.0
    if f"{matrix}.lora_A" in trained:
        rank = len(trained[f"{matrix}.lora_A"])
        a[:rank], b[:, :rank] = trained[f"{matrix}.lora_A"], trained[f"{matrix}.lora_B"]
    return a, b


def mean_product(theta, devices, matrix, whole):
    """Σ w_k B_k A_k / Σ w_k of the devices' whole models."""
    weight = sum(w for w, _ in devices)
    return sum(w * product(*padded(theta, trained, matrix, whole)[::-1]) for w, trained in devices) / weight


def mean_factors(theta, devices, matrix, whole):
    """Means of A and of B of the devices' whole models."""
    weight = sum(w for w, _ in devices)
    models = [(w, *padded(theta, trained, matrix, whole)) for w, trained in devices]
    return sum(w * a for w, a, _ in models) / weight, sum(w * b for w, _, b in models) / weight


def by_norm(devices, matrices):
    """The devices at weight w_k √Σ‖B_k A_k‖²_F over the matrices that they hold."""
    weighed = []
    for weight, trained in devices:
        held = [name for name in matrices if f"{name}.lora_A" in trained]
        square = sum((product(trained[f"{n}.lora_B"], trained[f"{n}.lora_A"]) ** 2).sum() for n in held)
        weighed.append((weight * square**0.5, trained))
    return weighed


def mean_head(devices, name):
    """Mean of the devices' heads."""
    return sum(w * trained[name] for w, trained in devices) / sum(w for w, _ in devices)


def best_of_rank(matrix, rank):
    """The best approximation of a rank, by a dense singular value decomposition."""
    u, s, vh = np.linalg.svd(matrix)
    return sum((s[i] * np.outer(u[:, i], vh[i]) for i in range(min(rank, len(s)))), np.zeros(matrix.shape))

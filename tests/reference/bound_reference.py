"""Mean squared deviation of (8)'s direction from the gradient, by adding up every outcome. Slow and obvious."""

import itertools

import numpy as np


def mean_squared_deviation(weight, gradients, kept, success, errors):
    """E‖∇R − u‖² with u = Σ ω_k s_k Π_k (∇R_k + e_k), deliveries and errors independent across devices.

    `kept[k]` coordinates survive Π_k; `errors[k]` are equally likely values of e_k.
    """
    devices, size = len(weight), len(gradients[0])
    whole = [sum(weight[k] * gradients[k][i] for k in range(devices)) for i in range(size)]
    choices = [
        [(1.0 - success[k], None)] + [(success[k] / len(errors[k]), error) for error in errors[k]]
        for k in range(devices)
    ]
    total = 0.0
    for outcome in itertools.product(*choices):
        chance, u = 1.0, [0.0] * size
        for k, (share, error) in enumerate(outcome):
            chance *= share
            if error is not None:
                for i in range(kept[k]):
                    u[i] += weight[k] * (gradients[k][i] + error[i])
        total += chance * sum((whole[i] - u[i]) ** 2 for i in range(size))
    return total


def least_constants(gradients, kept, errors):
    """The least Γ_k², δ_m and v_{k,m} with which A3–A5 are true here; `kept` is by module."""
    gamma_sq = [sum(x * x for x in gradient) for gradient in gradients]
    delta = [max(sum(x * x for x in g[n:]) / sum(x * x for x in g) for g in gradients) for n in kept]
    noise = [[np.mean([sum(x * x for x in e[:n]) for e in values]) for n in kept] for values in errors]
    return np.array(gamma_sq), np.array(delta), np.array(noise)

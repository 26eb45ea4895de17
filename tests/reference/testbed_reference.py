"""E[R(θ_t)] − R* by walking every outcome one by one, with risks and gradients written out sample by sample."""

import itertools
import math

import numpy as np
from scipy.optimize import minimize


def quadratic(hessian, centre):
    """Risk and gradient of one device's quadratic."""

    def risk(theta):
        return 0.5 * (theta - centre) @ hessian @ (theta - centre)

    return risk, lambda theta: hessian @ (theta - centre)


def ridge(inputs, targets, penalty, chosen):
    """Risk and gradient of ridge regression over some of the samples."""

    def risk(theta):
        return (
            sum((inputs[i] @ theta - targets[i]) ** 2 for i in chosen) / (2 * len(chosen)) + penalty / 2 * theta @ theta
        )

    def gradient(theta):
        return sum((inputs[i] @ theta - targets[i]) * inputs[i] for i in chosen) / len(chosen) + penalty * theta

    return risk, gradient


def logistic(inputs, penalty, chosen):
    """Risk and gradient of logistic regression over some of the samples, labels multiplied in."""

    def risk(theta):
        return sum(math.log1p(math.exp(-inputs[i] @ theta)) for i in chosen) / len(chosen) + penalty / 2 * theta @ theta

    def gradient(theta):
        return -sum(inputs[i] / (1 + math.exp(inputs[i] @ theta)) for i in chosen) / len(chosen) + penalty * theta

    return risk, gradient


def least(risk, size):
    """The least risk, by a general-purpose optimiser."""
    found = minimize(risk, np.zeros(size), method="BFGS", options={"gtol": 1e-10, "maxiter": 2000})
    return found.fun


def walk(weight, draws, kept, risk, theta, step, decisions, common=False):
    """E[R] after each round; `draws[k]` are device k's gradient functions, `decisions[t]` is (modules, π).

    With `common`, π is that of one weather of two, equally likely: min(2π, 1), or what is left of 2π.
    """
    means = [risk(theta)]
    points = [(1.0, theta)]
    for module, success in decisions:
        after = []
        for chance, point in points:
            for weather in (0, 1) if common else (None,):
                pi = success
                if weather is not None:
                    pi = [min(2 * p, 1.0) if weather == 0 else 2 * p - min(2 * p, 1.0) for p in success]
                for outcome in itertools.product(*[[None, *each] for each in draws]):
                    share, u = chance / (2 if common else 1), np.zeros(len(point))
                    for k, drawn in enumerate(outcome):
                        share *= 1 - pi[k] if drawn is None else pi[k] / len(draws[k])
                        if drawn is not None and module[k]:
                            n = kept[module[k] - 1]
                            u[:n] += weight[k] * drawn(point)[:n]
                    if share > 0:
                        after.append((share, point - step * u))
        points = after
        means.append(sum(chance * risk(point) for chance, point in points))
    return np.array(means)

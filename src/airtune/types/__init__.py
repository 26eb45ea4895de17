"""Nouns and Protocols of airtune. Imports nothing of ours.

Symbols: K devices, M modules, T rounds. Arrays are NumPy float64 unless stated, SI units, linear scale.
Module index 0 means "sits the round out"; modules count 1…M, so module m owns column m − 1 of a K×M array.
"""

from airtune.types.basic import AirtuneError, AnyFloat, BoolK, BoolKM, FloatK, FloatKM, FloatM, IntK, IntM, freeze
from airtune.types.cell import (
    Air,
    Decision,
    Devices,
    Link,
    Modules,
    Observation,
    Policy,
    Problem,
    Radio,
    Transmission,
    World,
)
from airtune.types.learned import Estimates, Fleet, Lesson, Lessons, Memory, Note, Offer, Outcome, Report, Update

__all__ = [
    "Air",
    "AirtuneError",
    "AnyFloat",
    "BoolK",
    "BoolKM",
    "Decision",
    "Devices",
    "Estimates",
    "Fleet",
    "FloatK",
    "FloatKM",
    "FloatM",
    "IntK",
    "IntM",
    "Lesson",
    "Lessons",
    "Link",
    "Memory",
    "Modules",
    "Note",
    "Observation",
    "Offer",
    "Outcome",
    "Policy",
    "Problem",
    "Radio",
    "Report",
    "Transmission",
    "Update",
    "World",
    "freeze",
]

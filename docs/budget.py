"""The table "Does the budget bind?" of devices.md, from the code: python docs/budget.py PRESET [--data-dir GLUE].

What a device of each class spends in a round on the full module, at full power, 300 m from the base station.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from airtune.build import learner_of
from airtune.physics.cost import compute_energy_j, compute_time_s, downlink_time_s, uplink_time_s, upload_energy_j
from airtune.physics.devices import CLASSES
from airtune.physics.fading import path_gain
from airtune.settings import read_config
from airtune.units import dbm_to_w
from airtune.worlds.analytic import radio_of

DISTANCE_M = 300.0


def main() -> None:
    """Print a row per class."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    config = replace(read_config(given.preset), data_dir=given.data_dir)
    learner = learner_of(config)
    length = float(learner.train.lengths.mean())
    tokens = config.learning.local_steps * config.learning.batch_size * length
    radio, largest = radio_of(config.world), slice(-1, None)
    flop, downlink_bit = learner.modules.flop_per_token[largest], learner.modules.downlink_bit[largest]
    downlink_s = downlink_time_s(downlink_bit, path_gain(np.array([DISTANCE_M])), radio)
    print(f"{given.preset}: {length:.1f} tokens a sequence, {flop[0] / 1e6:.1f} MFLOP a token,", end=" ")
    print(f"{tokens * flop[0] / 1e9:.0f} GFLOP a round, deadline {radio.deadline_s:g} s,", end=" ")
    print(f"downlink {downlink_s[0, 0]:.2f} s, memory {learner.modules.memory_byte[-1] / 1e6:.0f} MB")
    for name, each in CLASSES.items():
        count, clock, per_cycle = np.array([tokens]), np.array([each.frequency_hz]), np.array([each.flop_per_cycle])
        compute_s = compute_time_s(count, flop, clock, per_cycle)
        compute_j = float(compute_energy_j(count, flop, clock, per_cycle, np.array([each.capacitance]))[0, 0])
        uplink_s = float(uplink_time_s(radio.deadline_s, downlink_s, compute_s)[0, 0])
        power_w = dbm_to_w(each.power_max_dbm)
        upload_j = float(upload_energy_j(power_w, max(uplink_s, 0.0), each.pa_efficiency, each.circuit_power_w))
        budget_j = each.budget_j * config.fleet.budget_scale
        ratio = f"{(compute_j + upload_j) / budget_j:.1f}" if uplink_s > 0 else "too late"
        print(f"| `{name}` | {uplink_s:.1f} | {compute_j:.1f} | {upload_j:.1f} | {budget_j:.2f} | {ratio} |")


if __name__ == "__main__":
    main()

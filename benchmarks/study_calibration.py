"""How far the analytic success probability is from NR uploads over TR 38.901, and what that costs the controller.

    python -m benchmarks.study_calibration --out experiments/results/calibration --picture docs/pictures/calibration.png

Nothing is trained: sizes, tokens and fleet are those of a preset, and rounds are those of `airtune plan`. In every
scenario fades stand still during an upload (as (6) has it) or change at walking pace (3 km/h), with up to 64QAM, and
stand still with up to 256QAM. The controller decides by (6); `TransportAir` says who delivered. `reliability.csv` puts
the predicted probability beside the share that arrived, over the uploads that were really decided; `curves.csv` does so
for one upload over many drops at one SNR; `cost.csv` has what each policy delivers when uploads fare as it believes,
and as NR has it, with the SNR gap of the configuration and with one fitted to the uploads of other seeds by maximum
likelihood. All of it without a ceiling on the rate, and with that of the MCS table, (16).
"""

import argparse
import csv
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize_scalar

from airtune.air import uploads_s
from airtune.build import Learner, build, learner_of
from airtune.config import RunConfig
from airtune.control.evaluation import chosen
from airtune.learning.server import first_server
from airtune.physics.link import OutageLink, success_probability
from airtune.planning.trial import Untrained
from airtune.round import Record, rounds
from airtune.settings import override, read_config
from airtune.types import Decision, Problem
from airtune.worlds.analytic import radio_of
from airtune.worlds.tr38901 import Channels, LinkTables, Topology
from airtune.worlds.transport import TransportAir, max_efficiency_bit_per_s_hz
from benchmarks.calibration_shown import CEILINGS, CHANNELS, CURVE_RATE, SCENARIOS, SNR_DB, draw, tell

POLICIES = ("joint", "traditional")
FIRST_FIT_SEED = 100
NO_CEILING = 1000.0
"""A rate that nothing reaches [bit/s/Hz]."""


def case_of(base: RunConfig, scenario: str, channel: str, policy: str, ceiling: str) -> RunConfig:
    """The configuration of a case; its ceiling on the rate holds whichever way uploads are decided."""
    speed_mps, table = CHANNELS[channel]
    asked = ("--world.kind", "sionna", "--sionna.scenario", scenario, "--policy.name", policy)
    config = override(base, [*asked, "--sionna.fading-speed-mps", str(speed_mps), "--sionna.mcs-table", str(table)])
    most = NO_CEILING
    if ceiling == "table":
        most = max_efficiency_bit_per_s_hz(LinkTables(config.sionna).rates, config.sionna.reserve)
    return override(config, ["--world.max-efficiency-bit-per-s-hz", str(most)])


def played(config: RunConfig, learner: Learner) -> list[Record]:
    """All rounds of a configuration without training."""
    built = build(config, None, lambda _: learner)
    system = dataclasses.replace(built.system, method=Untrained(built.system.method))
    start = dataclasses.replace(built.start, adapters={}, server=first_server({}, built.start.server.kept))
    return [record for _, record in rounds(system, start)]


def uploads(config: RunConfig, records: Sequence[Record]) -> list[dict[str, float]]:
    """What was decided for each upload, and whether it arrived."""
    radio, rows = radio_of(config.world), list[dict[str, float]]()
    for record in records:
        decision, gain = record.decision, record.problem.gain
        payload_bit = chosen(record.problem.payload_bit, decision.module)
        rate_bit_per_s = payload_bit / np.maximum(uploads_s(decision, record.problem), 1e-9)
        for device in np.flatnonzero(decision.module > 0):
            power_w, band_hz = decision.power_w[device], decision.bandwidth_hz[device]
            if power_w > 0 and band_hz > 0:
                snr = power_w * gain[device] / (radio.noise_w_per_hz * band_hz)
                rows.append(
                    {
                        "predicted": float(decision.success_probability[device]),
                        "delivered": float(record.outcome.delivered[device]),
                        "module": float(decision.module[device]),
                        "snr_db": 10.0 * math.log10(snr),
                        "efficiency": float(rate_bit_per_s[device] / band_hz),
                    }
                )
    return rows


def fitted_gap_db(found: Sequence[dict[str, float]], gap_db: float) -> float:
    """SNR gap under which the uploads are likeliest: π = exp(−Γ a), with Γ a = −log π at the gap decided with [dB]."""
    cost = -np.log(np.maximum([row["predicted"] for row in found], 1e-12))
    arrived = np.array([row["delivered"] for row in found]) > 0

    def unlikelihood(change_db: float) -> float:
        exponent = np.maximum(cost * 10.0 ** (change_db / 10.0), 1e-9)
        return float(np.where(arrived, exponent, -np.log(-np.expm1(-exponent))).sum())

    return gap_db + float(minimize_scalar(unlikelihood, bounds=(-20.0, 20.0), method="bounded").x)


def shares(found: Sequence[dict[str, float]]) -> Iterator[dict[str, Any]]:
    """Predicted and realised share of arrivals, by probability, SNR, rate and module; 95 % Wilson intervals."""
    predicted, arrived, module, snr_db, efficiency = (
        np.array([row[name] for row in found]) for name in ("predicted", "delivered", "module", "snr_db", "efficiency")
    )
    tenth = np.minimum(np.floor(10 * predicted) / 10, 0.9)
    groups = {"all": 0.0 * module, "probability": tenth, "snr_db": 5.0 * np.floor(snr_db / 5.0), "module": module}
    groups["bit_per_s_hz"] = np.floor(efficiency)
    for by, label in groups.items():
        for value in np.unique(label):
            mine = label == value
            count, hits = int(mine.sum()), int(arrived[mine].sum())
            interval = stats.binomtest(hits, count).proportion_ci(method="wilson")
            yield {
                "by": by,
                "from": round(float(value), 3),
                "uploads": count,
                "predicted": float(predicted[mine].mean()),
                "arrived": hits / count,
                "low": interval.low,
                "high": interval.high,
            }


def worth(config: RunConfig, records: Sequence[Record]) -> dict[str, float]:
    """Predicted and delivered utility over that of every best module delivered, deliveries and energy."""
    best = promised = reached = energy_j = 0.0
    sent = arrived = 0
    for record in records:
        utility = chosen(record.problem.utility, record.decision.module)
        best += float(np.maximum(record.problem.utility.max(axis=1), 0.0).sum())
        promised += float((utility * record.decision.success_probability).sum())
        reached += float((utility * record.outcome.delivered).sum())
        energy_j += float(record.outcome.energy_j.sum())
        sent, arrived = sent + int(record.outcome.scheduled.sum()), arrived + int(record.outcome.delivered.sum())
    return {
        "snr_gap_db": config.world.snr_gap_db,
        "max_efficiency_bit_per_s_hz": config.world.max_efficiency_bit_per_s_hz or math.inf,
        "promised_utility": promised / best,
        "delivered_utility": reached / best,
        "sent": sent,
        "delivered": arrived,
        "energy_j": energy_j,
    }


def curves(base: RunConfig, drops: int) -> list[dict[str, Any]]:
    """Share of one upload that arrives at each mean SNR: analytic, and over drops with and without line of sight."""
    config = case_of(base, "uma", "still", "joint", "none")
    radio, rows = radio_of(config.world), list[dict[str, Any]]()
    link, noise = OutageLink(radio.noise_w_per_hz, radio.snr_gap), radio.noise_w_per_hz
    time_s, band_hz, each = config.world.deadline_s, 50e3, np.ones(drops)
    bits = CURVE_RATE * time_s * band_hz
    for sight in ("never", "always"):
        channels = Channels(dataclasses.replace(config.sionna, line_of_sight=sight))
        place = np.tile([200.0, 0.0], (drops, 1))
        inside = np.zeros(drops, np.bool_)
        there = Topology(place, np.full(drops, sight == "always"), inside, inside)
        fading = channels.fading_power(config.seed, there, 0.0 * place, np.zeros((drops, 1)), 1, 1.0)
        air = TransportAir(config, lambda _t, _band, fading=fading: fading, noise)
        for snr_db in SNR_DB:
            gain = 10.0 ** (snr_db / 10.0) * noise * band_hz
            problem, decision = one_upload(gain * each, bits, time_s, band_hz, link)
            arrived = air.transmit(decision, problem).delivered
            analytic = success_probability(link.outage_power_w(bits, time_s, band_hz, gain), 1.0)
            rows.append(
                {"line_of_sight": sight, "snr_db": snr_db, "drops": drops, "analytic": float(analytic),
                 "arrived": float(arrived.mean())}
            )  # fmt: skip
    return rows


def one_upload(
    gain: NDArray[np.float64], bits: float, time_s: float, band_hz: float, link: OutageLink
) -> tuple[Problem, Decision]:
    """The same upload of 1 W by K devices of given gains."""
    one, table = np.ones(len(gain)), np.ones((len(gain), 1))
    problem = Problem(
        t=0, rounds=1, tradeoff_v=1.0, bandwidth_hz=band_hz * len(gain), link=link, gain=gain, pa_efficiency=one,
        circuit_power_w=0.0 * one, queue_j=0.0 * one, spent_j=0.0 * one, budget_j=one, weight=one / len(gain),
        utility=table, payload_bit=bits * table, uplink_s=time_s * table, compute_j=0.0 * table,
        power_max_w=table.copy(), feasible=table > 0,
    )  # fmt: skip
    return problem, Decision(one.astype(np.int64), one.copy(), band_hz * one, 0.0 * one, 0.0)


def study(base: RunConfig, learner: Learner, seeds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of reliability and of cost, every case in turn."""
    reliability, cost = list[dict[str, Any]](), list[dict[str, Any]]()
    for scenario, channel, policy, ceiling in itertools.product(SCENARIOS, CHANNELS, POLICIES, CEILINGS):
        config = case_of(base, scenario, channel, policy, ceiling)
        mark: dict[str, Any] = {"scenario": scenario, "channel": channel, "policy": policy, "ceiling": ceiling}
        found = list[dict[str, float]]()
        for seed in range(FIRST_FIT_SEED, FIRST_FIT_SEED + seeds):
            one = dataclasses.replace(config, seed=seed)
            found += uploads(one, played(one, learner))
        reliability += [mark | row for row in shares(found)]
        gaps = {"configured": config.world.snr_gap_db}
        if policy == "joint":
            gaps["fitted"] = fitted_gap_db(found, config.world.snr_gap_db)
        for (named, gap_db), deliveries in itertools.product(gaps.items(), ("rayleigh", "abstraction")):
            asked = ["--world.snr-gap-db", str(max(gap_db, 0.0)), "--sionna.deliveries", deliveries]
            for seed in range(seeds):
                one = dataclasses.replace(override(config, asked), seed=seed)
                told = mark | {"gap": named, "deliveries": deliveries, "seed": seed}
                cost.append(told | worth(one, played(one, learner)))
    return reliability, cost


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
        )


def main() -> None:
    """Run, write the rows, draw, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--drops", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--picture", type=Path, help="default: calibration.png in the folder of the rows")
    given = parser.parse_args()
    base = override(read_config(given.preset), ["--rounds", str(given.rounds), "--threads", "1"])
    curve = curves(base, given.drops)
    reliability, cost = study(base, learner_of(base), given.seeds)
    for name, rows in (("curves", curve), ("reliability", reliability), ("cost", cost)):
        write(given.out / f"{name}.csv", rows)
    draw(given.picture or given.out / "calibration.png", curve, reliability, cost)
    tell(reliability, cost)


if __name__ == "__main__":
    main()

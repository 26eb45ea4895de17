"""Time and energy of a round: computing, downlink, uplink, (1)–(4) and (7). NumPy float64, SI, linear."""

import math

import numpy as np
from numpy.typing import NDArray

from airtune.types import AirtuneError, AnyFloat, FloatK, FloatKM, FloatM, Radio


def compute_time_s(tokens: FloatK, flop_per_token: FloatM, frequency_hz: FloatK, flop_per_cycle: FloatK) -> FloatKM:
    """Computing time t_cmp(k,m) = N_k F_m / (φ_k f_k) [s], (1).

    Args:
        tokens: N_k, tokens processed in the round, shape K.
        flop_per_token: F_m, forward and backward [FLOP/token], shape M.
        frequency_hz: f_k [Hz], shape K, > 0.
        flop_per_cycle: φ_k [FLOP/cycle], shape K, > 0.

    Returns:
        K×M [s].

    Raises:
        AirtuneError: a clock or a φ that is not positive.

    """
    _require_positive("frequency_hz", frequency_hz)
    _require_positive("flop_per_cycle", flop_per_cycle)
    return np.outer(tokens / (flop_per_cycle * frequency_hz), flop_per_token)


def compute_energy_j(
    tokens: FloatK, flop_per_token: FloatM, frequency_hz: FloatK, flop_per_cycle: FloatK, capacitance: FloatK
) -> FloatKM:
    """Computing energy E_cmp(k,m) = κ_k f_k² N_k F_m / φ_k [J], (2).

    The chip draws κ f³ watts for the time (1). Arguments as in `compute_time_s`, and `capacitance` κ_k [F], shape K.
    The cubic law of dynamic power with voltage scaled along with frequency is Burd and Brodersen (1996).

    Returns:
        K×M [J].

    Raises:
        AirtuneError: a φ that is not positive.

    """
    _require_positive("flop_per_cycle", flop_per_cycle)
    return np.outer(capacitance * frequency_hz**2 * tokens / flop_per_cycle, flop_per_token)


def downlink_time_s(payload_bit: FloatM, gain: FloatK, radio: Radio) -> FloatKM:
    """Downlink time t_dl(k,m) = S_m / (B log2(1 + P_BS g_k / (N0 B))) [s], (3).

    The base station sends each module's slice at its full power over the whole band.

    Args:
        payload_bit: S_m [bit], shape M.
        gain: mean power gain g_k, linear, shape K, > 0.
        radio: B, N0, P_BS.

    Returns:
        K×M [s].

    Raises:
        AirtuneError: a gain that is not positive.

    """
    _require_positive("gain", gain)
    snr = radio.bs_power_w * gain / (radio.noise_w_per_hz * radio.bandwidth_hz)
    rate_bit_per_s = radio.bandwidth_hz / math.log(2.0) * np.log1p(snr)
    return payload_bit / rate_bit_per_s[:, None]


def affordable_power_w(
    left_j: FloatKM, uplink_s: FloatKM, pa_efficiency: FloatK, circuit_power_w: FloatK
) -> NDArray[np.float64]:
    """Transmit power at which an upload costs `left_j`, (7) solved for p: ξ (E/τ_up − P_circ) [W], shape K×M.

    Not positive where the circuits alone cost more.

    Args:
        left_j: what may be spent on the upload [J], shape K×M.
        uplink_s: τ_up, shape K×M [s]; where it is not positive the module is infeasible anyhow.
        pa_efficiency: ξ, shape K.
        circuit_power_w: P_circ [W], shape K.
    """
    upload_s = np.where(uplink_s > 0, uplink_s, np.inf)
    return pa_efficiency[:, None] * (left_j / upload_s - circuit_power_w[:, None])


def uplink_time_s(deadline_s: AnyFloat, downlink_s: AnyFloat, compute_s: AnyFloat) -> NDArray[np.float64]:
    """Time left for the upload τ_up(k,m) = τ − t_dl − t_cmp [s], (4).

    Not positive where the deadline cannot be met: the module is infeasible for that device in that round.
    Arguments broadcast [s].
    """
    return np.asarray(deadline_s - np.asarray(downlink_s) - np.asarray(compute_s), dtype=np.float64)


def upload_energy_j(
    power_w: AnyFloat, uplink_s: AnyFloat, pa_efficiency: AnyFloat, circuit_power_w: AnyFloat
) -> NDArray[np.float64]:
    """Upload energy E_up = p τ_up / ξ + P_circ τ_up [J], (7).

    The device transmits during the whole of τ_up at constant rate. Arguments broadcast; the caller masks the entries
    with τ_up ≤ 0, whose value means nothing.

    Args:
        power_w: p ≥ 0 [W].
        uplink_s: τ_up [s].
        pa_efficiency: ξ in (0, 1].
        circuit_power_w: P_circ ≥ 0 [W].

    Raises:
        AirtuneError: an efficiency that is not positive.

    """
    _require_positive("pa_efficiency", pa_efficiency)
    drawn_w = np.asarray(power_w) / np.asarray(pa_efficiency) + np.asarray(circuit_power_w)
    return np.asarray(drawn_w * np.asarray(uplink_s), dtype=np.float64)


def _require_positive(name: str, value: AnyFloat) -> None:
    """Refuse a value ≤ 0 or NaN anywhere in an array that a formula divides by."""
    if not np.all(np.asarray(value) > 0.0):
        raise AirtuneError(f"{name} must be > 0 everywhere, got a least value of {np.min(value)}")

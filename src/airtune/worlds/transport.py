r"""How an upload goes over NR: rate to MCS, transport blocks, HARQ and the deadline; who delivers is drawn from it.

Device k was given band b, power p and time τ_up for S bits.

1. *Resource elements.* ρ b τ_up of them carry data: 15 kHz subcarriers with 14 OFDM symbols a millisecond (TS 38.211,
   4.3), one of which carries the DMRS, so ρ = 12 · 13 / 180. Guard bands are not taken off.
2. *MCS.* The lowest of the PUSCH table (TS 38.214, 6.1.4.1, which refers to tables 5.1.3.1-1 and -2) at which
   N = ⌈S / TBS⌉ transport blocks and `reserve` of their number for retransmissions fit; the highest if none is enough.
   TBS is TS 38.214, 5.1.3.2, of the elements that carry about `transport_block_bit`; the last block is padded.
   The choice looks at the rate S/τ_up over b alone, never at the channel: the controller has decided with (6) already.
3. *One transmission.* SINR at an element is p g |H|² / (N0 b), with g the mean gain that the controller knew and |H|²
   the fading of TR 38.901 at that instant and carrier. Block error by Sionna's `PHYAbstraction`: exponential effective
   SINR over the band, then the BLER table over AWGN of that MCS and code block size.
4. *HARQ.* A wrong block is sent again at most `retransmissions` times, Chase-combined: SINRs add, and it is wrong
   after n transmissions with probability BLER(n · SINR). `PHYAbstraction` knows no combining: one uniform number a
   block is compared with each of these, which makes every one of them exact. All transmissions of a block meet the same
   fade, and waiting for feedback costs nothing (other HARQ processes fill the gap). After that the block starts afresh,
   as RLC (TS 38.322, acknowledged mode) has it.
5. *The upload* arrives iff all N blocks do before τ_up is over. The radio is on until then, so time and energy, (7),
   are at most what the controller counted with: retransmissions take time out of τ_up, never more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.air import uploads_s
from airtune.config import RunConfig
from airtune.control.evaluation import chosen
from airtune.rng import Stream, generator
from airtune.types import Decision, FloatK, IntK, Problem, Transmission
from airtune.worlds.tr38901 import LinkTables, Rates

ELEMENTS_PER_HZ_S = 12 * 13 / 180.0
"""ρ, resource elements with data per hertz and second."""


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """How n uploads are cut, one entry each."""

    rate: IntK
    """Entry of the link tables' rates."""
    blocks: IntK
    """N, transport blocks of the upload."""
    room: IntK
    """L, transmissions that fit in τ_up; the upload cannot arrive where L < N."""


def format_of(rates: Rates, payload_bit: FloatK, elements: FloatK, reserve: float) -> Format:
    """The lowest rate at which an upload and its reserve fit, or the highest there is.

    Args:
        rates: lowest first.
        payload_bit: S, shape n [bit].
        elements: resource elements there are, shape n.
        reserve: share of N to leave room for.
    """
    blocks = np.maximum(np.ceil(payload_bit[:, None] / rates.block_bit), 1.0)
    room = np.floor(elements[:, None] / rates.elements)
    fits = room >= np.ceil(blocks * (1.0 + reserve))
    index = np.where(fits.any(axis=1), fits.argmax(axis=1), len(rates.mcs) - 1)
    each = np.arange(len(index))
    return Format(index, blocks[each, index].astype(np.int64), room[each, index].astype(np.int64))


def transmit_blocks(
    errors: NDArray[np.float64], edges: IntK, blocks: int, uniform: NDArray[np.float64]
) -> tuple[int, int]:
    """Send transport blocks one after another until all have arrived or there is no more room.

    Args:
        errors: probability that a block is still wrong after 1 … R+1 transmissions, by stretch of time, J × (R+1).
        edges: transmissions that begin before the end of each stretch; the last is the room L, shape J.
        blocks: N.
        uniform: in [0, 1), one number for each block begun or begun afresh, at least L.

    Returns:
        Blocks that arrived and transmissions made.
    """
    arrived = made = begun = 0
    room = int(edges[-1])
    for error, edge in zip(np.minimum.accumulate(errors, axis=1), edges, strict=True):
        if made >= edge:
            continue
        wrong = uniform[begun : begun + int(edge) - made, None] < error
        count = 1 + wrong[:, :-1].sum(axis=1)
        end = made + np.cumsum(count)
        total = arrived + np.cumsum(~wrong[:, -1] & (end <= room))
        started = int((end - count < edge).sum())
        if total[started - 1] >= blocks:
            return blocks, int(end[np.argmax(total >= blocks)])
        arrived, made, begun = int(total[started - 1]), int(end[started - 1]), begun + started
    return arrived, min(made, room)


def max_efficiency_bit_per_s_hz(rates: Rates, reserve: float) -> float:
    """The highest S/(b τ_up) at which an upload and its reserve fit, but for what rounding to whole blocks takes.

    Args:
        rates: of the link tables.
        reserve: as in `format_of`.
    """
    return float(ELEMENTS_PER_HZ_S * (rates.block_bit / rates.elements).max() / (1.0 + reserve))


class TransportAir:
    """Uploads over NR as the docstring of this file defines them.

    Args:
        config: of the run: seed, deadline and `sionna`.
        fading_power: round and bands → |H|², K × instants × carriers, as `SionnaWorld.fading_power`.
        noise_w_per_hz: N0 [W/Hz].
    """

    def __init__(
        self, config: RunConfig, fading_power: Callable[[int, FloatK], NDArray[np.float64]], noise_w_per_hz: float
    ) -> None:
        self._config = config
        self._fading_power = fading_power
        self._noise_w_per_hz = noise_w_per_hz
        self._tables = LinkTables(config.sionna)

    @property
    def max_efficiency_bit_per_s_hz(self) -> float:
        """Above this rate over its band hardly an upload arrives: `max_efficiency_bit_per_s_hz` of its link tables."""
        return max_efficiency_bit_per_s_hz(self._tables.rates, self._config.sionna.reserve)

    def transmit(self, decision: Decision, problem: Problem) -> Transmission:
        """What becomes of the round's uploads; drawn anew for each device and round, the same for every policy."""
        uplink_s = uploads_s(decision, problem)
        delivered, airtime_s = np.zeros(len(uplink_s), np.bool_), uplink_s.copy()
        sending = np.flatnonzero((decision.power_w > 0) & (decision.bandwidth_hz > 0) & (uplink_s > 0))
        if not len(sending):
            return Transmission(delivered, airtime_s)
        band_hz, time_s = decision.bandwidth_hz[sending], uplink_s[sending]
        elements = ELEMENTS_PER_HZ_S * band_hz * time_s
        payload_bit = chosen(problem.payload_bit, decision.module)[sending]
        cut = format_of(self._tables.rates, payload_bit, elements, self._config.sionna.reserve)
        fading = self._fading_power(problem.t, decision.bandwidth_hz)[sending]
        mean_snr = decision.power_w[sending] * problem.gain[sending] / (self._noise_w_per_hz * band_hz)
        errors = self.block_errors(cut, mean_snr[:, None, None] * fading)
        for row, device in enumerate(map(int, sending)):
            room, blocks = int(cut.room[row]), int(cut.blocks[row])
            if room < blocks:
                continue
            one_s = float(self._tables.rates.elements[cut.rate[row]] / (ELEMENTS_PER_HZ_S * band_hz[row]))
            edges = self._edges(float(time_s[row]), one_s, room, fading.shape[1])
            uniform = generator(self._config.seed, Stream.BLOCKS, problem.t, device).random(room)
            arrived, made = transmit_blocks(errors[row], edges, blocks, uniform)
            if arrived == blocks:
                delivered[device], airtime_s[device] = True, made * one_s
        return Transmission(delivered, airtime_s)

    def block_errors(self, cut: Format, sinr: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability that a block of each upload is wrong after 1 … R+1 transmissions at each instant, n × J × (R+1).

        Args:
            cut: of n uploads.
            sinr: n × J × carriers, linear.
        """
        tries = np.arange(1, self._config.sionna.retransmissions + 2)
        combined = sinr[:, :, None, :] * tries[None, None, :, None]
        count = combined.shape[1] * combined.shape[2]
        flat = combined.reshape(-1, combined.shape[3])
        errors = self._tables.block_errors(np.repeat(cut.rate, count), flat)
        return errors.reshape(combined.shape[:3])

    def _edges(self, uplink_s: float, one_s: float, room: int, instants: int) -> IntK:
        """Transmissions begun before the end of each stretch of the round; an upload takes its last τ_up."""
        deadline_s = self._config.world.deadline_s
        end_s = deadline_s * np.arange(1, instants + 1) / instants - (deadline_s - uplink_s)
        edges = np.clip(np.ceil(end_s / one_s), 0, room).astype(np.int64)
        edges[-1] = room
        return edges

"""Sionna's 3GPP TR 38.901 channels and NR link tables as plain NumPy functions; the only file that imports Sionna.

Sionna (`sionna-no-rt`, NVIDIA, Apache-2.0) draws from torch generators of its own and reseeds torch's global one when
it is imported. Both are kept out of sight: every drawing function takes a seed and starts from it, and torch's global
state is what it was before, whatever is called here. Everything is computed on the CPU in double precision.

What Sionna 2.2.0 does not offer, and what stands in for it: see `worlds.transport` and docs/worlds.md.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.config import SionnaConfig
from airtune.types import AirtuneError, BoolK, FloatK, IntK

BS_HEIGHT_M = {"umi": 10.0, "uma": 25.0, "rma": 35.0}
"""Base-station heights of TR 38.901, tables 7.2-1 and 7.2-3 [m]."""
TARGET = 0.1
"""Block error that an MCS must fall below within its table to be used: what NR aims at (TS 38.214, 5.2.2.1)."""
EVEN = {"precision": "double", "device": "cpu"}


def load_sionna() -> SimpleNamespace:
    """The parts of Sionna that are used, imported with torch's global random state left as it was.

    Raises:
        AirtuneError: Sionna is not installed.
    """
    if importlib.util.find_spec("sionna") is None:
        raise AirtuneError("world.kind sionna: Sionna is not installed; pip install 'airtune[sionna]'")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return SimpleNamespace(
            config=importlib.import_module("sionna.phy").config,
            channel=importlib.import_module("sionna.phy.channel"),
            tr38901=importlib.import_module("sionna.phy.channel.tr38901"),
            nr=importlib.import_module("sionna.phy.nr.utils"),
            sys=importlib.import_module("sionna.sys"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """Where devices are and what is around them, K devices around a base station at the origin."""

    position_m: NDArray[np.float64]
    """(x, y), K×2 [m]."""
    line_of_sight: BoolK
    """Of the outdoor part of the way."""
    indoor: BoolK
    in_car: BoolK
    """Of rma alone; others have no loss for it."""
    indoor_m: FloatK | None = None
    """Way within the building [m]; None to draw it (TR 38.901, 7.4.3.1)."""


@dataclass(frozen=True, slots=True, eq=False)
class LargeScale:
    """What a place is like, shape K each."""

    path_loss_db: FloatK
    """Basic path loss, table 7.4.1-1, without shadowing and penetration."""
    line_of_sight_probability: FloatK
    """Table 7.4.2-1."""
    shadowing_std_db: FloatK
    """Table 7.4.1-1, by line of sight."""


class Channels:
    """Path loss, penetration and fading of a scenario, with one vertically polarised isotropic antenna at each end."""

    def __init__(self, config: SionnaConfig) -> None:
        self._sionna = load_sionna()
        self._config = config

    def large_scale(self, topology: Topology) -> LargeScale:
        """Path loss, probability of line of sight and spread of shadowing at each place; draws nothing (but for UMa
        devices 13 m or more above ground, whose environment height is drawn, from a fixed seed).
        """
        scenario = self._scenario(topology, seed=0)
        return LargeScale(
            path_loss_db=_values(scenario.basic_pathloss[:, 0, 0]),
            line_of_sight_probability=_values(scenario.los_probability[:, 0, 0]),
            shadowing_std_db=10.0 * _values(scenario.lsp_log_std[:, 0, 0, 3]),
        )

    def penetration(self, seed: int, topology: Topology) -> tuple[FloatK, FloatK]:
        """Loss by walls and car bodies [dB], 0 for all others, and the way within the building [m], drawn from a seed.

        TR 38.901, 7.4.3: up to 6 GHz in umi and uma 20 dB + 0.5 dB/m without a random part (table 7.4.3-3).
        """
        scenario = self._scenario(topology, seed)
        sampler = self._sionna.tr38901.LSPGenerator(scenario)
        sampler.topology_updated_callback()
        loss_db = _values((sampler.sample_pathloss() - scenario.basic_pathloss)[:, 0, 0])
        return loss_db, _values(scenario.distance_2d_in[:, 0, 0])

    def fading_power(
        self,
        seed: int,
        topology: Topology,
        velocity_mps: NDArray[np.float64],
        offset_hz: NDArray[np.float64],
        instants: int,
        interval_s: float,
    ) -> NDArray[np.float64]:
        """Fading power |H|² over the mean gain, mean 1 over drops, K × instants × F, drawn from a seed.

        Clusters, rays and Doppler of TR 38.901, 7.5, without path loss and shadowing. Devices are independent.

        Args:
            seed: of the drop.
            topology: K devices.
            velocity_mps: (x, y), K×2 [m/s].
            offset_hz: of the carriers looked at from the middle of the band, K×F [Hz].
            instants: how many instants.
            interval_s: from one to the next [s].
        """
        scenario = self._scenario(topology, seed, velocity_mps)
        channel = self._sionna.tr38901.SystemLevelChannel(scenario)
        channel.set_topology(los=_tensor(topology.line_of_sight)[:, None, None])
        paths, delay_s = channel(instants, 1.0 / interval_s)
        paths, delay_s = paths[:, 0, 0, 0, 0], delay_s[:, 0, 0]  # K × paths × instants, K × paths
        turn = -2.0j * np.pi * _tensor(offset_hz)[:, None, :] * delay_s[:, :, None]
        response = torch.einsum("kpi,kpf->kif", paths, torch.exp(turn))
        return _values(response.abs() ** 2)

    def _scenario(self, topology: Topology, seed: int, velocity_mps: NDArray[np.float64] | None = None) -> Any:
        """A scenario of its own for each call, so that nothing depends on earlier ones; Sionna's generator starts at
        the seed.
        """
        config, kind = self._config, self._config.scenario
        make = {"umi": "UMiScenario", "uma": "UMaScenario", "rma": "RMaScenario"}[kind]
        walls = {} if kind == "rma" else {"o2i_model": config.penetration}
        scenario = getattr(self._sionna.tr38901, make)(
            carrier_frequency=config.carrier_hz,
            ut_array=self._antenna(),
            bs_array=self._antenna(),
            direction="uplink",
            enable_pathloss=False,
            enable_shadow_fading=False,
            **walls,
            **EVEN,
        )
        self._sionna.config.torch_rng("cpu").manual_seed(seed)
        count = len(topology.position_m)
        place = np.column_stack((topology.position_m, np.full(count, config.ut_height_m)))
        height_m = config.bs_height_m or BS_HEIGHT_M[kind]
        still = np.zeros((count, 2)) if velocity_mps is None else velocity_mps
        nowhere = torch.zeros(count, 1, 3, dtype=torch.float64)
        cars = {"in_car": _tensor(topology.in_car)[:, None]} if kind == "rma" else {}
        inner = {} if topology.indoor_m is None else {"distance_2d_in": _tensor(topology.indoor_m)[:, None]}
        scenario.set_topology(
            ut_loc=_tensor(place)[:, None],
            bs_loc=torch.tensor([0.0, 0.0, height_m], dtype=torch.float64).expand(count, 1, 3).clone(),
            ut_orientations=nowhere,
            bs_orientations=nowhere,
            ut_velocities=_tensor(np.column_stack((still, np.zeros(count))))[:, None],
            in_state=_tensor(topology.indoor)[:, None],
            los=_tensor(topology.line_of_sight)[:, None, None],
            **cars,
            **inner,
        )
        return scenario

    def _antenna(self) -> Any:
        return self._sionna.tr38901.PanelArray(
            num_rows_per_panel=1,
            num_cols_per_panel=1,
            polarization="single",
            polarization_type="V",
            antenna_pattern="omni",
            carrier_frequency=self._config.carrier_hz,
            **EVEN,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Rates:
    """The modulation and coding schemes that the link tables hold, lowest rate first, one entry each."""

    mcs: IntK
    """Index in the MCS table."""
    elements: IntK
    """Resource elements of one transport block."""
    block_bit: IntK
    """Information bits of one transport block, TS 38.214, 5.1.3.2."""


class LinkTables:
    """Block errors by `PHYAbstraction`: exponential effective SINR, then BLER tables over AWGN.

    Of Sionna 2.2.0's tables, those of PUSCH are used up to 64QAM (MCS 3–27 of table 1). Up to 256QAM those of PDSCH are
    (MCS 2–26 of table 2), whose coding and modulation are the same: Sionna's for PUSCH lie 7 to 9 dB below capacity.
    They hold code blocks of 24 to 2,000 bits and SINRs in steps of 1.8 dB from −5 to 20 dB (PUSCH), between
    which log BLER is linear; outside, the value at the edge stands.
    """

    rates: Rates

    def __init__(self, config: SionnaConfig) -> None:
        sionna = load_sionna()
        self._abstraction, self._effective = _abstraction()
        self._table, self._category = config.mcs_table, {1: 0, 2: 1}[config.mcs_table]
        tables = self._abstraction.bler_table["category"][self._category]["index"][self._table]["MCS"]
        mcs = np.array([each for each, table in sorted(tables.items()) if min(table["CBS"][2000]["BLER"]) < TARGET])
        order, rate = sionna.nr.MCSDecoderNR(**EVEN)(_tensor(mcs), self._table, self._category)
        elements = torch.ceil(config.transport_block_bit / (order * rate)).to(torch.int32)
        sizes = sionna.nr.TransportBlockNR(**EVEN)
        block_bit = sizes.transport_block_size(order, rate, (order * elements).to(torch.int32))[0]
        by_rate = np.argsort(_values(order * rate), kind="stable")
        self.rates = Rates(*(np.asarray(each)[by_rate].astype(np.int64) for each in (mcs, elements, block_bit)))

    def block_errors(self, index: IntK, sinr: NDArray[np.float64]) -> FloatK:
        """Probability that each of n transport blocks is wrong, shape n.

        Args:
            index: entry of `rates`, shape n.
            sinr: at some of the block's resource elements, linear, > 0, n×F.
        """
        mcs = _tensor(self.rates.mcs[index]).to(torch.int32)
        effective = self._effective(_tensor(sinr.T)[None, :, :, None], mcs, self._table)
        _, _, _, errors, _ = self._abstraction(
            mcs,
            sinr_eff=effective,
            num_allocated_re=_tensor(self.rates.elements[index]),
            mcs_table_index=self._table,
            mcs_category=self._category,
        )
        return _values(errors)


@lru_cache(maxsize=1)
def _abstraction() -> tuple[Any, Any]:
    """`PHYAbstraction`, whose tables take a while to interpolate, and the effective SINR; neither is ever changed."""
    sionna = load_sionna()
    return sionna.sys.PHYAbstraction(**EVEN), sionna.sys.EESM(**EVEN)


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def _values(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.numpy().astype(np.float64)

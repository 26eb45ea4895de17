"""TR 38.901's formulas written out by hand from its tables, and uploads sent one transmission at a time."""

import math

LIGHT_MPS = 299792458.0


def umi_db(d2_m: float, carrier_ghz: float, seen: bool, bs_m: float = 10.0, ut_m: float = 1.5) -> float:
    """Table 7.4.1-1, UMi street canyon."""
    d3_m = math.hypot(d2_m, bs_m - ut_m)
    breakpoint_m = 4 * (bs_m - 1) * (ut_m - 1) * carrier_ghz * 1e9 / LIGHT_MPS
    if d2_m <= breakpoint_m:
        los = 32.4 + 21 * math.log10(d3_m) + 20 * math.log10(carrier_ghz)
    else:
        los = 32.4 + 40 * math.log10(d3_m) + 20 * math.log10(carrier_ghz)
        los -= 9.5 * math.log10(breakpoint_m**2 + (bs_m - ut_m) ** 2)
    nlos = 35.3 * math.log10(d3_m) + 22.4 + 21.3 * math.log10(carrier_ghz) - 0.3 * (ut_m - 1.5)
    return los if seen else max(los, nlos)


def uma_db(d2_m: float, carrier_ghz: float, seen: bool, bs_m: float = 25.0, ut_m: float = 1.5) -> float:
    """Table 7.4.1-1, UMa, for devices below 13 m."""
    d3_m = math.hypot(d2_m, bs_m - ut_m)
    breakpoint_m = 4 * (bs_m - 1) * (ut_m - 1) * carrier_ghz * 1e9 / LIGHT_MPS
    if d2_m <= breakpoint_m:
        los = 28.0 + 22 * math.log10(d3_m) + 20 * math.log10(carrier_ghz)
    else:
        los = 28.0 + 40 * math.log10(d3_m) + 20 * math.log10(carrier_ghz)
        los -= 9 * math.log10(breakpoint_m**2 + (bs_m - ut_m) ** 2)
    nlos = 13.54 + 39.08 * math.log10(d3_m) + 20 * math.log10(carrier_ghz) - 0.6 * (ut_m - 1.5)
    return los if seen else max(los, nlos)


def rma_db(d2_m: float, carrier_ghz: float, seen: bool, bs_m: float = 35.0, ut_m: float = 1.5) -> float:
    """Table 7.4.1-1, RMa, streets 20 m wide and buildings 5 m high."""
    width_m, height_m = 20.0, 5.0

    def near(d3_m: float) -> float:
        return (
            20 * math.log10(40 * math.pi * d3_m * carrier_ghz / 3)
            + min(0.03 * height_m**1.72, 10) * math.log10(d3_m)
            - min(0.044 * height_m**1.72, 14.77)
            + 0.002 * math.log10(height_m) * d3_m
        )

    d3_m = math.hypot(d2_m, bs_m - ut_m)
    breakpoint_m = 2 * math.pi * bs_m * ut_m * carrier_ghz * 1e9 / LIGHT_MPS
    los = near(d3_m) if d2_m <= breakpoint_m else near(breakpoint_m) + 40 * math.log10(d3_m / breakpoint_m)
    nlos = (
        161.04
        - 7.1 * math.log10(width_m)
        + 7.5 * math.log10(height_m)
        - (24.37 - 3.7 * (height_m / bs_m) ** 2) * math.log10(bs_m)
        + (43.42 - 3.1 * math.log10(bs_m)) * (math.log10(d3_m) - 3)
        + 20 * math.log10(carrier_ghz)
        - (3.2 * math.log10(11.75 * ut_m) ** 2 - 4.97)
    )
    return los if seen else max(los, nlos)


def line_of_sight_probability(scenario: str, d2_m: float) -> float:
    """Table 7.4.2-1, for devices outdoors and below 13 m."""
    if scenario == "rma":
        return 1.0 if d2_m <= 10 else math.exp(-(d2_m - 10) / 1000)
    decay_m = {"umi": 36.0, "uma": 63.0}[scenario]
    return 1.0 if d2_m <= 18 else 18 / d2_m + math.exp(-d2_m / decay_m) * (1 - 18 / d2_m)


def sent_one_by_one(errors, edges, blocks, uniform):
    """Blocks that arrive and transmissions made, decided transmission by transmission."""
    room = edges[-1]
    arrived, made, begun = 0, 0, 0
    while arrived < blocks and made < room:
        stretch = next(j for j, edge in enumerate(edges) if made < edge)
        number, begun = uniform[begun], begun + 1
        for error in errors[stretch]:
            if made == room:
                return arrived, made
            made += 1
            if number >= error:
                arrived += 1
                break
    return arrived, made

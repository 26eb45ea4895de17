"""A device's throughput to the server as the kernel estimates it from its own traffic (Linux, `ss` of iproute2)."""

import re
import socket
import subprocess

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}


def throughput_bit_per_s(address: str) -> float | None:
    """Best delivery rate of the connections to HOST:PORT [bit/s]; None where the system does not tell.

    The kernel counts what the other side has acknowledged, and leaves out moments in which there was nothing to send.
    """
    host, _, port = address.rpartition(":")
    try:
        places = {
            str(place[4][0]) for place in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        }
        query = " or ".join(f"dst [{place}]:{port}" if ":" in place else f"dst {place}:{port}" for place in places)
        told = subprocess.run(["ss", "-tinH", query], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return best_rate(told)


def best_rate(told: str) -> float | None:
    """The greatest delivery rate in what `ss -ti` prints [bit/s].

    >>> best_rate("bbr cwnd:10 delivery_rate 1.5Mbps app_limited cubic delivery_rate 800Kbps")
    1500000.0
    >>> best_rate("cubic rto:204") is None
    True
    """
    rates = [float(n) * _UNITS[unit] for n, unit in re.findall(r"delivery_rate ([\d.]+)([KMG]?)bps", told)]
    return max((rate for rate in rates if rate > 0), default=None)

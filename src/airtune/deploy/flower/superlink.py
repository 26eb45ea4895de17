"""Flower's SuperLink with the APIs that start and steer runs closed to other machines.

Flower 1.41 serves them on the port that devices use and asks nobody who they are: whoever could reach that port could
have any code run on the devices.
"""

# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportUntypedFunctionDecorator=false
import ipaddress
from typing import Any

from flwr.superlink import main
from flwr.superlink.cli.flower_superlink import flower_superlink
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

OPEN = ("/v1/fleet/", "/health")
"""Paths for everybody: the API of SuperNodes, which checks their keys, and the sign of life."""


class Closed:
    """Answers 403 to other machines that ask for anything but `OPEN`."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request, as ASGI has it."""
        if scope["type"] == "http" and not scope["path"].startswith(OPEN) and not is_local(scope.get("client")):
            await PlainTextResponse("only from the server's own machine", 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def is_local(client: tuple[str, int] | None) -> bool:
    """Whether a caller is on this machine."""
    try:
        address = ipaddress.ip_address(client[0]) if client else None
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address).is_loopback


def close(superlink: Any) -> None:
    """Put `Closed` before everything else that the SuperLink app does."""
    theirs = superlink._get_middleware

    def ours() -> list[Any]:
        return [Middleware(Closed), *theirs()]

    superlink._get_middleware = ours


if __name__ == "__main__":
    close(main)
    flower_superlink()

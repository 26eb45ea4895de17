"""TensorBoard: event files, read by `tensorboard --logdir DIR`."""

from collections.abc import Mapping
from pathlib import Path

import tomli_w

from airtune.logs.log import Start


class TensorBoardLog:
    """Writes DIR/NAME of the run; DIR is the target, or `tensorboard` in the run folder."""

    def __init__(self, target: str | None) -> None:
        self._target = target

    def begin(self, start: Start) -> str | None:
        """Open the event file; a resumed run hides what it will write again."""
        from torch.utils.tensorboard import SummaryWriter

        place = start.folder / "tensorboard" if self._target is None else Path(self._target) / start.name
        self._writer = SummaryWriter(str(place), purge_step=start.first if start.first > 1 else None)
        if start.first == 1:
            self._writer.add_text("config", f"```toml\n{tomli_w.dumps(start.config)}\n```")
        return None

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, *, finished: bool) -> None:
        """Close the event file."""
        self._writer.close()

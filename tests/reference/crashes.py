"""Runs that end where they should not, and whether what they left is what an uninterrupted one leaves."""

from safetensors.torch import load_file

from airtune.record import RunFolder


class Crash(BaseException):
    """Nothing catches this on purpose, as nothing catches a power cut."""


def crash_on(monkeypatch, name, call):
    """Make the call-th use of a RunFolder method crash instead."""
    real, count = getattr(RunFolder, name), iter(range(1, 100))

    def crashing(self, *args, **kwargs):
        if next(count) == call:
            raise Crash
        return real(self, *args, **kwargs)

    monkeypatch.setattr(RunFolder, name, crashing)


def assert_alike(one, other):
    """Rows and checkpoint of two run folders are the same, bit for bit."""
    for name in ("rounds.jsonl", "devices.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    mine, theirs = (load_file(path / "state.safetensors") for path in (one, other))
    assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)

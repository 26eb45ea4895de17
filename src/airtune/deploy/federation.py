"""Who is there: devices by their numbers, what they last said of themselves, and what happened to them."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from airtune.deploy.config import Slot
from airtune.deploy.messages import Standing, Task
from airtune.deploy.validation import Accepted, Expected, Refused, examine
from airtune.files import write_json


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One party that is connected."""

    id: int
    key: str | None
    """Its public key as one line of OpenSSH, where keys are in use."""


class Exchange(Protocol):
    """Carries blobs to nodes and back."""

    def nodes(self) -> Sequence[Node]:
        """Who is connected."""
        ...

    def ask(self, blobs: Mapping[int, bytes], t: int, timeout_s: float) -> Mapping[int, bytes | str]:
        """Send a blob to each node and wait for the answers, at most so long.

        Returns:
            By node, the answer's bytes, or why there is none; nothing of a node that did not answer.
        """
        ...


class Journal:
    """events.jsonl: joins, leaves and faults, one JSON object a line, on the disk at once; never cut back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, event: str, t: int | None = None, device: str | None = None, reason: str | None = None) -> None:
        """Append an event with the time of day."""
        row = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        row |= {key: value for key, value in (("t", t), ("device", device), ("reason", reason)) if value is not None}
        with self._path.open("ab", buffering=0) as file:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            os.fsync(file.fileno())


class Federation:
    """The devices of a run, reached through an exchange.

    Args:
        slots: who may take part; a device's number is its place.
        keys: public key of each slot; None where devices are known by the names that they give.
        exchange: reaches them.
        journal: where events go.
        setup: the run's configuration as plain values, part of every task.
        model: SHA-256 of the frozen model that all must have.
        report_s: how long devices may take to tell of themselves.
        told: file that shows what each device last said; None for none.
        sleep: waits; replaced in tests.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        keys: Sequence[str] | None,
        exchange: Exchange,
        journal: Journal,
        setup: Mapping[str, Any],
        model: str,
        report_s: float,
        told: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.slots = slots
        self.setup = setup
        self.model = model
        self.journal = journal
        self.standings: dict[int, Standing] = {}
        """What each device last said of itself, by number; kept when it leaves."""
        self._numbers = None if keys is None else {key: number for number, key in enumerate(keys)}
        self._exchange = exchange
        self._report_s = report_s
        self._told = told
        self._sleep = sleep
        self._nodes: dict[int, int] = {}
        """Node of each device that is connected."""
        self._strangers: set[int] = set()
        self._before = _names(told)
        """Devices that were there before the server was started again, until the first round has begun."""

    def gather(self, t: int, least: int) -> list[int]:
        """The devices that have told of themselves for round t, ascending; waits until there are `least`."""
        waited = False
        while len(ready := self._meet(t)) < least:
            if not waited:
                self.journal.note("waiting", t, reason=f"{len(ready)} devices are there, {least} are needed")
            waited = True
            self._sleep(2.0)
        for name in self._before - {self.slots[k].name for k in ready}:
            self.journal.note("left", t, name, "it was there before the server was started again")
        self._before = frozenset()
        if self._told is not None:
            write_json(self._told, {self.slots[k].name: dataclasses.asdict(s) for k, s in self.standings.items()})
        return ready

    def ask(
        self, tasks: Mapping[int, Task], expected: Mapping[int, Expected], timeout_s: float, t: int
    ) -> dict[int, Accepted | Refused]:
        """Ask devices and examine what they answer; what they say of themselves is kept.

        Args:
            tasks: by device.
            expected: what the answers must be, by device.
            timeout_s: how long they may take.
            t: the round.

        Returns:
            By device, an entry for every task.
        """
        reached = {k: self._nodes[k] for k in tasks if k in self._nodes}
        answers = self._exchange.ask({node: tasks[k].blob() for k, node in reached.items()}, t, timeout_s)
        results: dict[int, Accepted | Refused] = {}
        for k in tasks:
            found = answers.get(reached[k]) if k in reached else "it is not connected"
            if found is None:
                results[k] = Refused(f"late or missing: no answer within {timeout_s:g} s")
            elif isinstance(found, str):
                results[k] = Refused(f"missing: {found[:200]}")
            else:
                results[k] = examine(found, expected[k])
            self._hear(k, results[k])
        return results

    def _meet(self, t: int) -> list[int]:
        """One look at who is connected; whoever has not told of itself for round t is asked to."""
        nodes = {node.id: node for node in self._exchange.nodes()}
        for k in [k for k, node in self._nodes.items() if node not in nodes]:
            self.journal.note("left", t, self.slots[k].name)
            del self._nodes[k]
        known = {node: k for k, node in self._nodes.items()}
        silent = {k for k in self._nodes if k not in self.standings or self.standings[k].t != t}
        asked = {i: known.get(i, self._number(nodes[i])) for i in nodes if i not in known or known[i] in silent}
        asked = {i: k for i, k in asked.items() if i not in self._strangers}
        blobs = {i: Task(t, k, self.setup).blob() for i, k in asked.items()}
        answers = self._exchange.ask(blobs, t, self._report_s) if blobs else {}
        for node, answer in answers.items():
            self._introduce(node, asked[node], t, answer)
        return sorted(k for k in self._nodes if k in self.standings and self.standings[k].t == t)

    def _number(self, node: Node) -> int:
        """The device that a node is by its key; −1 if that is to be asked. A key that is not listed is a stranger's."""
        if self._numbers is None:
            return -1
        if node.key not in self._numbers:
            self._strange(node.id, "its key is not listed")
            return -1
        return self._numbers[node.key]

    def _introduce(self, node: int, number: int, t: int, answer: bytes | str) -> None:
        """Take in what a node said of itself."""
        who = self.slots[number].name if number >= 0 else f"node {node}"
        if isinstance(answer, str):
            self.journal.note("silent", t, who, answer[:200])
            return
        result = examine(answer, Expected(t, number, 0, {}, 0.0, 0, model=self.model))
        standing = None if result.answer is None else result.answer.standing
        if isinstance(result, Refused) or standing is None:
            self.journal.note("refused", t, who, result.reason if isinstance(result, Refused) else "it says nothing")
            return
        names = [slot.name for slot in self.slots]
        k = number if number >= 0 else names.index(standing.name) if standing.name in names else -1
        if k < 0 or standing.name != names[k]:
            self._strange(node, f"it calls itself {standing.name}")
        elif self._nodes.get(k, node) != node:
            self.journal.note("refused", t, names[k], "another node is this device already")
        else:
            if k not in self._nodes:
                self.journal.note("joined", t, names[k])
            self._nodes[k] = node
            self._keep(k, standing)

    def _hear(self, k: int, result: Accepted | Refused) -> None:
        """Keep what an answer says of its device."""
        if isinstance(result, Accepted) and result.answer.standing is not None:
            self._keep(k, result.answer.standing)

    def _keep(self, k: int, standing: Standing) -> None:
        """Keep what a device says of itself, and note what of it has died since it last did."""
        known = self.standings.get(k)
        before = 0 if known is None or standing.links_lost < known.links_lost else known.links_lost
        if known is not None and standing.links_lost > before:
            self.journal.note(
                "died", standing.t, self.slots[k].name, f"its SuperNode, {standing.links_lost - before} times"
            )
        self.standings[k] = standing

    def _strange(self, node: int, reason: str) -> None:
        if node not in self._strangers:
            self._strangers.add(node)
            self.journal.note("refused", device=f"node {node}", reason=reason)


def _names(told: Path | None) -> frozenset[str]:
    """Names in a file of what devices said of themselves; none if there is no such file."""
    return (
        frozenset(json.loads(told.read_text(encoding="utf-8"))) if told is not None and told.exists() else frozenset()
    )

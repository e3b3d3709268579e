"""One set of totals for many processes that come and go; pure, the caller says what time it is.

Each process sends what it has counted since its start; here only the increases are added up, so
that no total steps back when a process dies. A process that is older than the totals themselves,
because the controller was restarted, counts from its first report on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monitoring.metrics import METRICS

Key = tuple[str, ...]
"""A metric's name and the values of its first labels; the others are the array's indices."""
Values = Mapping[Key, NDArray[np.float64]]
"""A number has shape (), a histogram [buckets + 2]: counts by bucket, the last for +Inf; sum."""

QUIET_S = 2.0  # whoever is silent for so long makes room for one that comes
KEEP_S = 3600.0  # a process that was silent for so long counts as one that is older than we are


@dataclass(frozen=True, slots=True)
class Account:
    """What one process says of itself.

    kind: shard, replica or gateway. source: this incarnation of it. age_s: since it began to
    count. totals: counted since then. states: as they are now.
    """

    kind: str
    source: str
    age_s: float
    totals: Values = field(default_factory=dict)
    states: Values = field(default_factory=dict)


@dataclass(slots=True)
class _Known:
    place: str
    heard_s: float
    totals: Values
    states: Values
    is_older: bool  # than the totals
    is_live: bool = True


class Ledger:
    """Adds up accounts."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._known: dict[Key, _Known] = {}
        self.totals: dict[Key, NDArray[np.float64]] = {}

    def add(self, account: Account, now_s: float) -> Values:
        """Take a report in; returns by how much each of its totals has grown."""
        who = (account.kind, account.source)
        known = self._known.get(who)
        if known is None:
            known = self._meet(account, now_s)
        elif not known.is_live:
            known.place, known.is_live = self._free_place(account.kind, now_s), True
        grown = {key: self._growth(known, key, now) for key, now in account.totals.items()}
        for key, growth in grown.items():
            self.count(self._placed(account.kind, known.place, key), growth)
        known.totals, known.states, known.heard_s = account.totals, account.states, now_s
        return grown

    def count(self, key: Key, more: NDArray[np.float64] | float = 1.0) -> None:
        """Add to a total."""
        was = self.totals.get(key)
        self.totals[key] = np.asarray(more if was is None else was + more, np.float64)

    def leave(self, before_s: float) -> None:
        """Those not heard since then have no place and no state any more."""
        for who, known in list(self._known.items()):
            known.is_live &= known.heard_s >= before_s
            if not known.is_live and known.heard_s < before_s - KEEP_S:
                del self._known[who]

    def states(self) -> dict[Key, NDArray[np.float64]]:
        """What those who live said last."""
        return {
            self._placed(kind, known.place, key): value
            for (kind, _), known in self._known.items()
            if known.is_live
            for key, value in known.states.items()
        }

    def place(self, kind: str, source: str) -> str | None:
        """The place of a process that lives."""
        known = self._known.get((kind, source))
        return known.place if known is not None and known.is_live else None

    def _meet(self, account: Account, now_s: float) -> _Known:
        is_older = account.age_s > min(now_s - self._started_s, KEEP_S)
        if not is_older:
            self.count(("expertmesh_process_starts_total", account.kind))
        known = _Known(self._free_place(account.kind, now_s), now_s, {}, {}, is_older)
        self._known[account.kind, account.source] = known
        return known

    def _free_place(self, kind: str, now_s: float) -> str:
        of_kind = [known for (k, _), known in self._known.items() if k == kind]
        for known in of_kind:
            known.is_live &= now_s - known.heard_s <= QUIET_S
        taken = {known.place for known in of_kind if known.is_live}
        return next(str(n) for n in range(len(taken) + 1) if str(n) not in taken)

    @staticmethod
    def _growth(known: _Known, key: Key, now: NDArray[np.float64]) -> NDArray[np.float64]:
        was = known.totals.get(key)
        if was is None or was.shape != now.shape:
            return np.zeros_like(now) if known.is_older else now
        return np.maximum(now - was, 0.0)

    @staticmethod
    def _placed(kind: str, place: str, key: Key) -> Key:
        metric = METRICS.get(key[0])
        is_own = metric is not None and metric.labels[:1] == (kind,)
        return (key[0], place, *key[1:]) if is_own else key


def number(value: float) -> NDArray[np.float64]:
    """A plain number as a total."""
    return np.asarray(value, np.float64)

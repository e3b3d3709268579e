"""How long a newcomer would wait, from how long requests have taken lately. Pure.

With `places` requests inside, each for `mean_s`, one leaves every mean_s / places seconds, whatever
the lengths are mixed like. Source: Little, "A Proof for the Queuing Formula L = λW", 1961.
"""

REMEMBERED = 32  # requests: an older one counts 1/e; half a batch, so a shift shows within one


class Pace:
    """How long requests stay inside, those that ended last above all."""

    def __init__(self) -> None:
        self._mean_s = 0.0
        self._seen = 0

    def took(self, seconds: float) -> None:
        """One has left, however it ended."""
        self._seen = min(self._seen + 1, REMEMBERED)
        self._mean_s += (seconds - self._mean_s) / self._seen

    @property
    def mean_s(self) -> float:
        """Seconds that one stays; 0 while nobody has left yet."""
        return self._mean_s

    def wait_s(self, ahead: int, places: int) -> float:
        """Seconds until somebody's turn with so many ahead; 0 while nobody has left yet."""
        return (ahead + 1) * self._mean_s / max(1, places)

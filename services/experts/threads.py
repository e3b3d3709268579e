"""How many CPU threads a batch of rows gets: one or all, by which computes such batches sooner.

No rule fits all machines: where one core reads memory as fast as two, a second thread takes a core
from whoever else computes and gains nothing; elsewhere it halves a batch's time (DECISIONS.md). So
a shard tries both.
"""

from collections import deque
from statistics import median

WORTH = 0.95
"""All threads must take less than this share of one thread's time, since others want the cores."""
TRIAL = 15  # batches in a row: the first with more threads wakes them
SETTLE = 5 * TRIAL  # before the first trial; the first batches of all meet new memory
EVERY = 600  # batches between two trials, since machines change


class ThreadChoice:
    """What one shard has learnt, for batches of each size."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, int], _Size] = {}

    def threads_for(self, n_pairs: int, *, most: int) -> int:
        """One or `most`, for so many pairs of a row and an expert.

        Nothing between: OpenMP ends and makes threads when a team changes to another size above
        one.
        """
        return most if most > 1 and self._size(n_pairs, most).has_all else 1

    def took(self, n_pairs: int, seconds: float, *, most: int) -> None:
        """A batch has been computed with as many as `threads_for` said."""
        if most > 1:
            self._size(n_pairs, most).took(seconds / n_pairs)

    def _size(self, n_pairs: int, most: int) -> "_Size":
        """Batches between two powers of two are alike."""
        return self._sizes.setdefault((n_pairs.bit_length(), most), _Size())


class _Size:
    def __init__(self) -> None:
        self.has_all = True  # threads, the next batch
        self._times = {way: deque[float](maxlen=TRIAL) for way in (False, True)}
        self._is_trial = False
        self._left = SETTLE  # batches that go the same way

    def took(self, seconds: float) -> None:
        self._times[self.has_all].append(seconds)
        self._left -= 1
        if self._left:
            return
        if self._is_trial:
            one, every = (median(self._times[way]) for way in (False, True))
            self.has_all, self._left = every < WORTH * one, EVERY
        else:
            self.has_all, self._left = not self.has_all, TRIAL
        self._is_trial = not self._is_trial

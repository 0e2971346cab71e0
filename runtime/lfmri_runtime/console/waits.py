"""Waits between tries of what may pass by itself: they double, so that what lasts fills no journal."""

import time
from dataclasses import dataclass

#: After a first refusal, where no setting says otherwise.
FIRST_WAIT_SECONDS = 5.0
#: Waits double up to this.
LONGEST_WAIT_SECONDS = 300.0
#: Far beyond any cap, and still a float.
_MOST_DOUBLINGS = 30


@dataclass
class Refusals:
    """How often something was refused in a row.

    Attributes:
        count: refusals so far.
        due: when to try again, by the monotonic clock.
    """

    count: int = 0
    due: float = 0.0

    def add(self, first_wait: float = FIRST_WAIT_SECONDS) -> None:
        """Count one more and double the wait, seconds."""
        wait = first_wait * 2.0 ** min(self.count, _MOST_DOUBLINGS)
        self.due = time.monotonic() + min(wait, LONGEST_WAIT_SECONDS)
        self.count += 1

    def waiting(self) -> bool:
        """Whether it is too early to try again."""
        return time.monotonic() < self.due

"""What each adapter was asked for at this frontend: counted by digest, bounded in number."""

from bisect import bisect_left
from dataclasses import dataclass

OTHERS = "others"
"""Stands for the digests that were asked for least, once there are too many to keep apart."""

# Seconds; the last bucket has no bound.
FIRST_TOKEN_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True, kw_only=True)
class Usage:
    """Requests that ended, however they did, and their tokens."""

    requests: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def add(self, other: "Usage") -> None:
        self.requests += other.requests
        self.failures += other.failures
        self.prompt_tokens += other.prompt_tokens
        self.generated_tokens += other.generated_tokens

    def minus(self, other: "Usage") -> "Usage":
        return Usage(
            requests=self.requests - other.requests,
            failures=self.failures - other.failures,
            prompt_tokens=self.prompt_tokens - other.prompt_tokens,
            generated_tokens=self.generated_tokens - other.generated_tokens,
        )


class UsageTable:
    """Counts by digest ("" is the base model) since the start. Belongs to the event loop.

    Args:
        most: digests kept apart at least; at twice as many, all but the `most` busiest are added up.
    """

    def __init__(self, *, most: int = 1000) -> None:
        self._most = most
        self._usages: dict[str, Usage] = {}
        self.first_token_counts = [0] * (len(FIRST_TOKEN_BOUNDS) + 1)
        """Requests by the time to their first token: of each bucket alone."""
        self.first_token_seconds = 0.0

    def count(self, digest: str, usage: Usage, *, first_token_seconds: float | None) -> None:
        """Adds a request that ended; the time is None where no token was made."""
        mine = self._usages.get(digest)
        if mine is None:
            if len(self._usages) >= 2 * self._most:
                self._fold()
            mine = self._usages[digest] = Usage()
        mine.add(usage)
        if first_token_seconds is not None:
            self.first_token_counts[bisect_left(FIRST_TOKEN_BOUNDS, first_token_seconds)] += 1
            self.first_token_seconds += first_token_seconds

    def of(self, digest: str) -> Usage:
        """What is known of a digest; zeros for one that was not asked for, or seldom."""
        return self._usages.get(digest) or Usage()

    def busiest(self, most: int) -> list[tuple[str, Usage]]:
        """Digests with the most requests, without `OTHERS`."""
        ranked = sorted(self._usages.items(), key=lambda item: item[1].requests, reverse=True)
        return [item for item in ranked if item[0] != OTHERS][:most]

    def total(self) -> Usage:
        total = Usage()
        for usage in self._usages.values():
            total.add(usage)
        return total

    def _fold(self) -> None:
        kept = dict(self.busiest(self._most))
        others = kept.setdefault(OTHERS, self._usages.get(OTHERS) or Usage())
        for digest, usage in self._usages.items():
            if digest not in kept:
                others.add(usage)
        self._usages = kept

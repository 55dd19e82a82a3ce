"""Finds stop strings in text that arrives in pieces, however they fall across the pieces' borders.

The match that is complete first wins; of several complete at the same character, the longest. So the outcome
does not depend on how the text was cut into pieces. (Aho and Corasick, "Efficient string matching", 1975.)
"""

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """The automaton of a set of stop strings; immutable, shared by the completions of a request.

    A state is the longest suffix of the text so far that begins some stop string. Per state: `steps` (next
    state by character), `fallback` (the state of its longest proper suffix), `depth` (its length) and `match`
    (the longest stop string that ends here, or "").
    """

    def __init__(self, strings: Sequence[str]) -> None:
        assert all(strings), "an empty stop string matches everywhere"
        self.steps: list[dict[str, int]] = [{}]
        self.fallback: list[int] = [0]
        self.depth: list[int] = [0]
        self.match: list[str] = [""]
        for string in strings:
            self._insert(string)
        self._link()

    def _insert(self, string: str) -> None:
        state = 0
        for depth, character in enumerate(string, start=1):
            following = self.steps[state].get(character)
            if following is None:
                following = len(self.steps)
                self.steps[state][character] = following
                self.steps.append({})
                self.fallback.append(0)
                self.depth.append(depth)
                self.match.append("")
            state = following
        self.match[state] = string

    def _link(self) -> None:
        queue = deque(self.steps[0].values())
        while queue:
            state = queue.popleft()
            for character, following in self.steps[state].items():
                shorter = self.fallback[state]
                while shorter and character not in self.steps[shorter]:
                    shorter = self.fallback[shorter]
                self.fallback[following] = self.steps[shorter].get(character, 0)
                self.match[following] = self.match[following] or self.match[self.fallback[following]]
                queue.append(following)


class StopMatcher:
    """Follows one completion's text; holds back what may turn out to begin a stop string."""

    __slots__ = ("_held", "_state", "_strings", "match")

    def __init__(self, strings: StopStrings) -> None:
        self._strings = strings
        self._state = 0
        self._held = ""
        self.match = ""
        """The stop string that ended the text, or "" so far."""

    def feed(self, text: str) -> str:
        """Adds text and returns what can no longer be part of a stop string.

        Once a stop string is found, `match` names it, the text before it has been returned, and whatever
        follows it in `text` is gone. Not to be called after that.
        """
        assert not self.match, "the text has already ended"
        if not text:
            return ""
        steps, fallback = self._strings.steps, self._strings.fallback
        matches, state = self._strings.match, self._state
        for position, character in enumerate(text):
            while state and character not in steps[state]:
                state = fallback[state]
            state = steps[state].get(character, 0)
            if matches[state]:
                self.match = matches[state]
                before = self._held + text[: position + 1]
                self._held = ""
                return before[: len(before) - len(self.match)]
        self._state = state
        whole = self._held + text
        released = len(whole) - self._strings.depth[state]
        self._held = whole[released:]
        return whole[:released]

    def flush(self) -> str:
        """Returns what was held back: the text has ended without a stop string."""
        held, self._held, self._state = self._held, "", 0
        return held

import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from frontend.text.stop_strings import StopMatcher, StopStrings


def feed_all(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, str]:
    matcher = StopMatcher(StopStrings(stops))
    text = ""
    for piece in pieces:
        text += matcher.feed(piece)
        if matcher.match:
            return text, matcher.match
    return text + matcher.flush(), ""


def by_hand(stops: Sequence[str], text: str) -> tuple[str, str]:
    """The definition: the match that is complete first; of those, the longest."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, ""


def test_text_before_the_stop_is_released_and_the_rest_is_gone():
    assert feed_all(["STOP"], ["one ST", "OP two"]) == ("one ", "STOP")


def test_what_only_looked_like_a_stop_is_released_later():
    matcher = StopMatcher(StopStrings(["</end>"]))
    assert matcher.feed("a</en") == "a"
    assert matcher.feed("x") == "</enx"
    assert matcher.flush() == ""


def test_held_text_comes_out_at_the_end():
    matcher = StopMatcher(StopStrings(["\n\nHuman:"]))
    assert matcher.feed("bye\n\nHu") == "bye"
    assert matcher.flush() == "\n\nHu"


def test_a_stop_that_begins_inside_a_failed_one_is_found():
    assert feed_all(["aab"], ["aa", "aab"]) == ("aa", "aab")
    assert feed_all(["abcd", "bcx"], ["ab", "c", "x"]) == ("a", "bcx")


def test_the_stop_that_is_complete_first_wins():
    assert feed_all(["abcd", "bc"], ["abcd"]) == ("a", "bc")
    assert feed_all(["bc", "abc"], ["xabc"]) == ("x", "abc")


@given(
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4),
    pieces=st.lists(st.text("abc\n", max_size=6), max_size=12),
)
def test_equals_the_definition_however_the_text_is_cut(stops: list[str], pieces: list[str]):
    assert feed_all(stops, pieces) == by_hand(stops, "".join(pieces))


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    text=st.text("abc", max_size=20),
)
def test_holds_back_no_more_than_needed(stops: list[str], text: str):
    matcher = StopMatcher(StopStrings(stops))
    released = matcher.feed(text)
    if matcher.match:
        return
    held = text[len(released) :]
    prefixes = {stop[:length] for stop in stops for length in range(len(stop))}
    assert held == max((prefix for prefix in prefixes if text.endswith(prefix)), key=len)
    assert not any(re.search(re.escape(stop), text) for stop in stops)

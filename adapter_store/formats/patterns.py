"""Module patterns of PEFT configs, matched exactly as PEFT matches them, and never for long.

Python's `re` backtracks and holds the interpreter lock meanwhile, so a hostile pattern would stop the whole
store. Patterns that could take exponential time are refused: the ways through one are counted, from above.
What is left is bounded by a polynomial in the length of a module's path, and whoever matches many modules
looks at the clock between them.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from adapter_store.formats.strict_json import printable
from rpc.errors import LorikeetError, invalid_argument

_MAX_LENGTH = 2_000
# Each may be tried at every position of a path of some 40 characters. Six admits what Unsloth writes.
_MAX_UNBOUNDED = 6
# Each of them may be tried with all of these.
_MAX_WAYS = 16

# A construct that backtracking makes exponential or that we need not have: a repeated group, a
# back-reference, a look-around, a conditional or inline flags. "(?:...)" is harmless, and so is an optional
# group, "(...)?".
_FORBIDDEN = re.compile(r"\)[*+{]|\\[1-9]|\\g|\(\?(?!:)")
_UNBOUNDED = re.compile(r"[*+]|\{\d*,\d*\}|\{\d+\}")
_OPTIONAL = re.compile(r"(?<![(*+?}])\?")
_SKIP = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_INNERMOST_GROUP = re.compile(r"\((?:\?:)?([^()]*)\)")
# What Python's `re` keeps for sets of the future, and warns of each time.
_SET_OPERATION = re.compile(r"\[|--|&&|~~|\|\|")
_SPECIAL = frozenset(".^$*+?{}[]()|\\")


class Endings:
    """A list of targets, in which PEFT finds a path if one of them is the path, or its last parts."""

    def __init__(self, targets: Iterable[str]) -> None:
        self._targets = frozenset(targets)
        self._parts = max((target.count(".") + 1 for target in self._targets), default=0)

    @property
    def are_single(self) -> bool:
        """True when no target has more than one part."""
        return self._parts <= 1

    def mean_exactly(self, path: str) -> bool:
        return path in self._targets

    def mean(self, path: str) -> bool:
        end = len(path)
        for _ in range(self._parts):
            end = path.rfind(".", 0, end)
            if path[end + 1 :] in self._targets:
                return True
            if end < 0:
                break
        return False


def pattern_key_regex(key: str, option: str) -> re.Pattern[str]:
    """How PEFT matches a key of rank_pattern or alpha_pattern against a module path (use `.match`)."""
    return _compile(rf"(.*\.)?({key})$", key, option)


def target_regex(pattern: str, option: str) -> re.Pattern[str]:
    """How PEFT matches target_modules or exclude_modules given as one string (use `.fullmatch`)."""
    return _compile(pattern, pattern, option)


def layers_regex(pattern: str, option: str) -> re.Pattern[str]:
    """How PEFT finds the layer index with a layers_pattern (use `.match`, group "idx")."""
    return _compile(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", pattern, option)


@lru_cache(maxsize=8192)
def _compile(expression: str, written: str, option: str) -> re.Pattern[str]:
    _check(written, option)
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise invalid_argument(
            "BAD_PATTERN",
            f"{option}: {written[:100]!r} is not a regular expression: {printable(str(error))}",
            option=option,
        ) from error


def _check(pattern: str, option: str) -> None:
    for found in _SKIP.finditer(pattern):
        if found.group()[0] == "[" and _SET_OPERATION.search(re.sub(r"\\.", "", found.group()[1:])):
            raise invalid_argument(
                "BAD_PATTERN",
                f"{option}: {pattern[:100]!r} has a set within a set, or an operation on sets: escape it",
                option=option,
            )
    if (
        len(pattern) > _MAX_LENGTH
        or _FORBIDDEN.search(_SKIP.sub(_placeholder, pattern)) is not None
        or len(_UNBOUNDED.findall(bare := _SKIP.sub(_plain, pattern))) > _MAX_UNBOUNDED
        or _ways(bare) > _MAX_WAYS
    ):
        raise _too_complex(pattern, option)


def _placeholder(match: re.Match[str]) -> str:
    # Back-references stay visible to _FORBIDDEN; other escapes and character classes become one plain letter.
    text = match.group()
    return text if text[0] == "\\" and (text[1] in "123456789g") else "x"


def _plain(match: re.Match[str]) -> str:
    # One character for one, such that equal ones match the same; "." for whatever matches more than one.
    text = match.group()
    if text[0] != "\\" or text[1].isalnum():
        return "."
    return chr(0xF0000 + ord(text[1])) if text[1] in _SPECIAL else text[1]


def _ways(bare: str) -> int:
    """At most so many ways lead through a pattern from one position, its repetitions apart."""
    ways = 2 ** len(_OPTIONAL.findall(bare))
    while group := _INNERMOST_GROUP.search(bare):
        ways *= _matching_at_once(group[1].split("|"))
        bare = f"{bare[: group.start()]}.{bare[group.end() :]}"
    return ways * _matching_at_once(bare.split("|"))


def _matching_at_once(branches: list[str]) -> int:
    """At most so many of the branches match at one position: of plain texts, those that begin one another."""
    plain = sorted(branch for branch in branches if _SPECIAL.isdisjoint(branch))
    deepest = 0
    chain: list[str] = []
    for branch in plain:
        while chain and not branch.startswith(chain[-1]):
            chain.pop()
        chain.append(branch)
        deepest = max(deepest, len(chain))
    return len(branches) - len(plain) + deepest


def _too_complex(pattern: str, option: str) -> LorikeetError:
    return invalid_argument(
        "PATTERN_TOO_COMPLEX",
        f"{option}: the pattern {pattern[:100]!r} could take very long to match; write it without repeated "
        f"groups, back-references and look-arounds, with at most {_MAX_UNBOUNDED} repetitions and few "
        "optional parts and alternatives, or list modules",
        option=option,
    )

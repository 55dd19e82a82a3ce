"""YAML in which nothing is said twice: YAML itself lets the second silence the first."""

from typing import Any

import yaml


class RepeatedKeyError(yaml.constructor.ConstructorError):
    """A key stands twice in one mapping."""


def load_yaml(text: str) -> Any:
    """What one document of plain YAML, or JSON, says.

    Raises yaml.YAMLError; of its kinds RepeatedKeyError for a key that stands twice in one mapping.
    """
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader


class _StrictLoader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._looked_at: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # The first look sees what was written; what `<<` brings in may be said once more.
        if id(node) not in self._looked_at:
            self._looked_at.add(id(node))
            _check(node)
        super().flatten_mapping(node)


def _check(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (key.tag, key.value) in seen:
            raise RepeatedKeyError(problem=f"{key.value} is said twice", problem_mark=key.start_mark)
        seen.add((key.tag, key.value))

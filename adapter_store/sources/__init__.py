"""Where adapters come from."""

from adapter_store.sources.opening import Sources
from adapter_store.sources.reader import SourceReader

__all__ = ["SourceReader", "Sources"]

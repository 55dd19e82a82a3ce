"""Which files of a place belong to an adapter: the one list for all kinds of sources."""

from collections.abc import Callable, Collection

from adapter_store.formats.safetensors_files import CONFIG_NAME, INDEX_NAME, SINGLE_NAME, parse_index
from adapter_store.formats.strict_json import printable
from rpc.errors import invalid_argument, not_found

_UNUSED_NAMES = ("chat_template.json",)

PICKLE_NAME = "adapter_model.bin"
MAX_SMALL_BYTES = 16 << 20
"""Largest file of an adapter that is no weights."""

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# All are open at once while they are copied, and a process may have few open files.
_MAX_SHARDS = 128


def weight_files(source: str, names: Collection[str], read_index: Callable[[], bytes]) -> list[str]:
    """Picks the files with weights.

    Args:
        source: for messages.
        names: what there is.
        read_index: reads the index of an adapter in parts.

    Raises:
        LorikeetError: INVALID_ARGUMENT or NOT_FOUND, saying what to do.
    """
    if SINGLE_NAME in names and INDEX_NAME in names:
        raise invalid_argument(
            "AMBIGUOUS_WEIGHTS",
            f"{source} has both {SINGLE_NAME} and {INDEX_NAME}: remove the one that is old",
        )
    if SINGLE_NAME in names:
        return [SINGLE_NAME]
    if INDEX_NAME in names:
        shards = sorted(set(parse_index(read_index()).values()))
        if len(shards) > _MAX_SHARDS:
            raise invalid_argument(
                "TOO_MANY_FILES", f"{source} has {len(shards)} weight files; up to {_MAX_SHARDS} are read"
            )
        return [INDEX_NAME, *shards]
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        raise invalid_argument(
            "PICKLE",
            f"{source}: {printable(pickles[0])} is a pickle, which can run code when it is read; where you "
            "trust it, load it with PEFT and save it again with save_pretrained, which writes safetensors",
        )
    hint = " (an adapter in parts needs its index too)" if any(".safetensors" in n for n in names) else ""
    raise not_found("NO_WEIGHTS", f"{source}: no {SINGLE_NAME} there{hint}")


def check_config(source: str, names: Collection[str]) -> None:
    """Raises LorikeetError: NOT_FOUND where there is no adapter."""
    if CONFIG_NAME not in names:
        raise not_found("NO_CONFIG", f"{source}: no {CONFIG_NAME} there; give the folder that PEFT saved")


def prompt_notes(names: Collection[str]) -> tuple[str, ...]:
    """What the report says of files that are left where they are."""
    return tuple(
        f"{name} of the adapter's folder is not used: keep its template as chat_template.jinja"
        for name in _UNUSED_NAMES
        if name in names
    )


def check_size(total: int, max_bytes: int) -> None:
    """Raises LorikeetError: INVALID_ARGUMENT for an adapter that is too large."""
    if total > max_bytes:
        raise invalid_argument(
            "ADAPTER_TOO_LARGE",
            f"the adapter's files have {total} bytes; the store takes up to {max_bytes}",
        )


def by_steps(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """Tells `progress`, of bytes done and bytes in all, what it is told of each step's bytes."""
    done = 0

    def advance(step: int) -> None:
        nonlocal done
        done += step
        progress(done, total)

    return advance

"""A frontend and its store's catalog."""

from pathlib import Path

from rpc.channel import MAX_MESSAGE_BYTES
from tests.support.frontend_harness import ids_of, running_rig

DIGEST = "ab" * 32


async def test_a_catalog_is_as_large_as_it_is(model_folder: Path):
    """100,000 names of 128 characters, say. Fewer and longer ones here."""
    count = 20
    long = {f"{number}{'x' * (MAX_MESSAGE_BYTES // count)}": DIGEST for number in range(count)}
    async with running_rig(model_folder, adapters=long | {"sql": DIGEST}) as rig:
        response = await rig.generate(text="x", adapter="sql", sampling={"max_tokens": 3})
        assert len(ids_of(response)) == 3

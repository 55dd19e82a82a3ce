"""Loads adapters one after another for `bench.load_stalls`, in a process of its own.

So what their client costs is not in the interpreter that times the streams. A line on stdin names the folder
whose adapters are loaded in a closed loop, without a pause; an empty line ends that, and all are unloaded. A
line of JSON on stdout then says how many seconds each load took.
"""

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from lorikeet.v1 import adapters_pb2, adapters_pb2_grpc
from rpc.channel import open_channel


class Loading:
    """Loads adapters of one folder, brings them into the executor's pool, and takes them away again."""

    def __init__(self, adapters: Any, folder: Path) -> None:
        self._adapters = adapters
        self._sources = sorted(folder.iterdir())
        self._loaded: list[str] = []
        self.seconds: list[float] = []
        self.is_over = False

    async def run(self) -> None:
        for source in itertools.cycle(self._sources):
            if self.is_over:
                break
            began = time.perf_counter()
            request = adapters_pb2.LoadAdapterRequest(name=source.name, source=str(source))
            self._loaded.append(source.name)
            await self._adapters.LoadAdapter(request, timeout=120)
            hint = adapters_pb2.PrefetchAdapterRequest(adapter=source.name)
            await self._adapters.PrefetchAdapter(hint, timeout=120)
            self.seconds.append(time.perf_counter() - began)
            if len(self._loaded) > len(self._sources) // 2:
                # Gone from disk and memory long before its turn comes again.
                await self._unload(self._loaded.pop(0))
        for name in self._loaded:
            await self._unload(name)

    async def _unload(self, name: str) -> None:
        await self._adapters.UnloadAdapter(adapters_pb2.UnloadAdapterRequest(name=name), timeout=60)


async def main(address: str) -> None:
    loop = asyncio.get_running_loop()
    async with open_channel(address) as channel:
        adapters: Any = adapters_pb2_grpc.AdapterServiceStub(channel)
        while folder := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            loading = Loading(adapters, Path(folder))
            work = asyncio.create_task(loading.run())
            await loop.run_in_executor(None, sys.stdin.readline)
            loading.is_over = True
            await work
            print(json.dumps(loading.seconds), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

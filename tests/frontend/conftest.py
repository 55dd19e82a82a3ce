from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.frontend_model_folder import write_model_folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # grpc.aio wants one event loop a process.
    for item in items:
        if Path(__file__).parent in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))

from pathlib import Path
from typing import Any

import pytest

from frontend.config import FrontendConfig
from tests.support.frontend_model_folder import write_model_folder


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": "nowhere"},
        {"executor": "host:99999"},
        {"store": "unix:"},
        {"max_requests": 0},
        {"max_message_bytes": 1},
        {"patience_seconds": float("nan")},
        {"drain_seconds": -1},
    ],
)
def test_a_setting_that_cannot_work_is_named(tmp_path: Path, settings: dict[str, Any]):
    folder = write_model_folder(tmp_path)
    FrontendConfig(model_dir=folder, store="", listen="unix:/tmp/x")
    with pytest.raises(ValueError, match=next(iter(settings))):
        FrontendConfig(model_dir=folder, **settings)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json"):
        FrontendConfig(model_dir=tmp_path)

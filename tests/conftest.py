"""What every test needs: no network habits, few threads, nothing left behind in the checkout."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

# Before torch, Ray and MLflow are imported, and inherited by the processes that tests start.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Clusters that tests start know each other by a token of this session, whatever lies in the home
# folder: `ray start` takes up a token that it finds there, and joining by address does not.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
for _name in ("MLFLOW_TRACKING_URI", "PREFIXWORKS_BASE"):
    os.environ.pop(_name, None)
# The commands of this environment (deepspeed, ninja, ray) before those of the system: DeepSpeed
# builds its operators again when another ninja answers first.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# Times say nothing on a machine that does other work too.
hypothesis.settings.register_profile("default", deadline=None, max_examples=50)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Each test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_store() -> None:
    """MLflow writes the store that a test has chosen into the environment, where it would stay."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of the reference's recorded inputs and outputs."""
    return Path(__file__).parent / "parity" / "fixtures"

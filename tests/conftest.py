"""What every test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def faces_zip() -> Path:
    """The real faces corpus; its terms forbid copying it into the project."""
    path = _SHARED / "faces" / "aaf-192.zip"
    if not path.exists():
        pytest.skip(f"needs the faces corpus at {path}")
    return path

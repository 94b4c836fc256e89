"""What several test files share: one compiled tiny network, and where optional real images are."""

from pathlib import Path

import pytest

TINY = {"layers": [1, 2, 1, 1], "groups": 4, "width_per_group": 32, "in_channels": 8, "features": 16}


@pytest.fixture(scope="session")
def repo():
    """The repository's root folder."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def realdata(repo):
    """A folder of real RGB-D images beside the repository; tests that want it are skipped where it is absent."""
    folder = repo.parent / "shared" / "realdata"
    if not (folder / "mixdata.json").is_file():
        pytest.skip("no real images beside the repository")
    return folder

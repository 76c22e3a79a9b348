"""The processes of the session."""

import pytest

from .processes import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    """Processes that start when the first test needs them."""
    found = Processes(tmp_path_factory.mktemp("stores"))
    yield found
    found.stop()

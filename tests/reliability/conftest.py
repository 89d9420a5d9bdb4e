"""What an uninterrupted run leaves, for the tests that compare with it."""

import pytest

from .small_run import finish, left_by


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run, which no test changes."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert finish(folder) == 0
    return folder


@pytest.fixture(scope="session")
def whole(finished):
    """The content of this folder that an equal run has to leave."""
    return left_by(finished)

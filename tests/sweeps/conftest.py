"""What the tests of sweeps share: a tiny model in a folder, as actors load it."""

import pytest
from saved_models import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models"))

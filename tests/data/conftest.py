import pytest

from jaxbp.data import kept


@pytest.fixture(autouse=True)
def nothing_read_before():
    kept._sets.cache_clear()

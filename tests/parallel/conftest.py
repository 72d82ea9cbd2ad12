import pytest

from tests.parallel.pool import Pool


@pytest.fixture(scope="module")  # ranks that wait cost time: gloo's threads look around
def pool(tmp_path_factory):
    made = Pool(tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()

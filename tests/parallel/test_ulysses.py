"""Every method on two and four ranks against one device: the same latents, counts and notes, and the bytes sent."""

import pytest

from dittools.methods import METHODS
from dittools.pipelines.parallel.exchange import volume
from tests.parallel import scenes
from tests.parallel.scenes import GRIDS, HEADS, STEPS, TEXT, compare

FAMILIES = list(GRIDS)
NAMES = [name for name, kind in METHODS.items() if kind.profile_use != "needed" and name != "trained"]
LAYERS = 2
WIDTH = {"wan": 12, "ltx": 8, "flux": 16, "flux-2": 16, "qwen-image": 16, "hunyuan-video": 10}
BATCH = {"qwen-image": 2}


@pytest.fixture(scope="module")
def found(pool):
    """By family, degree and method."""
    answers = {}

    def of(family):
        if family not in answers:
            cases = [{"method": name} for name in NAMES]
            made = pool.run(compare, family, (2, 4), cases)[0]
            answers[family] = {(one["degree"], one["case"]["method"]): one for one in made}
        return answers[family]

    return of


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("degree", (2, 4))
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_draw_what_one_device_draws(family, degree, name, found):
    one = found(family)[degree, name]
    expected = one["alone"]["record"]
    assert len(one["ranks"]) == degree and {each["error"] for each in one["ranks"]} == {None}
    # A rank's share of the rows may go through another kernel of the CPU's BLAS, which rounds in another way.
    assert one["difference"] <= (0 if family == "wan" else 1e-5)
    for each in one["ranks"]:
        record = each["record"]
        for fact in ("calls", "heads", "notes", "fallbacks", "grid", "kernels", "method"):
            assert record[fact] == expected[fact]
        assert record["calls"]["expected"] == record["calls"]["dense"] + record["calls"]["sparse"]
        for fact in ("sparse_calls", "overall", "per_step", "per_layer"):
            assert record["sparsity"][fact] == pytest.approx(expected["sparsity"][fact], abs=1e-6)
        for fact in ("by_parts", "pairs_by_parts"):
            assert record["sparsity"][fact] == pytest.approx(expected["sparsity"][fact], abs=1e-6)
        tokens = GRIDS[family][0] * GRIDS[family][1] * GRIDS[family][2] + (0 if family in ("wan", "ltx") else TEXT)
        each_call = volume(BATCH.get(family, 1), tokens, HEADS, WIDTH[family], degree, 4)
        assert record["parallel"]["exchanged_bytes"] == each_call * STEPS * LAYERS
        assert record["parallel"]["ranks"] == degree


def test_these_are_the_families_of_the_table_and_the_methods_that_need_no_profile():
    assert set(FAMILIES) == set(WIDTH) and scenes.SIZE == 4
    assert {"paro", "sparse_vdit", "trained"} == set(METHODS) - set(NAMES)  # the last is of a checkpoint with a mask

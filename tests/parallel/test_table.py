"""What completes the table of every method and correction on every family: corrections, and profiled methods."""

import functools
import json

import pytest

from dittools.methods import METHODS
from tests.parallel.scenes import calibrated, compare
from tests.parallel.test_settings import CORRECTED, check, name_of

FAMILIES = ("ltx", "flux", "qwen-image", "hunyuan-video")  # Wan's are in `test_settings` and `test_ring`
PROFILED = tuple(name for name, kind in METHODS.items() if kind.profile_use == "needed")
LAYOUTS = {"ulysses2": (2, 1), "ulysses4": (4, 1), "ring2": (2, 2), "2x2": (4, 2)}
MADE_UP = [one for one in CORRECTED if one["method"] not in ("gna", "nabla")]
ON = pytest.mark.parametrize(("degree", "ring"), LAYOUTS.values(), ids=LAYOUTS)


@functools.cache
def found(pool, family, ring, named):
    made = pool.run(functools.partial(compare, ring=ring, batch=1), family, (2, 4), json.loads(named))[0]
    return {(one["degree"], json.dumps(one["case"])): one for one in made}


@pytest.mark.parametrize("asked", MADE_UP, ids=name_of)
@pytest.mark.parametrize("degree", (2, 4))
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "flux"])
def test_what_is_skipped_is_made_up_for_as_on_one_device(family, degree, asked, pool):
    check(found(pool, family, 1, json.dumps(MADE_UP))[degree, json.dumps(asked)])


@pytest.fixture(scope="module")
def profiles(pool, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("profiles"), {}

    def of(family):
        if family not in made:
            made[family] = str(folder / f"{family}.json")
            pool.run(calibrated, family, PROFILED, made[family], 3, 1)
        return made[family]

    return of


@pytest.mark.parametrize("name", PROFILED)
@ON
@pytest.mark.parametrize("family", FAMILIES)
def test_a_profile_of_every_family_serves_its_ranks(family, degree, ring, name, pool, profiles):
    cases = [{"method": each, "profile": profiles(family)} for each in PROFILED]
    one = found(pool, family, ring, json.dumps(cases))[degree, json.dumps(cases[PROFILED.index(name)])]
    assert check(one)["sparsity"]["sparse_calls"] == pytest.approx(0.6, abs=0.05)

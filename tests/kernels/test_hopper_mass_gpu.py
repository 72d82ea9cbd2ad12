"""Runs `hopper_mass_on_a_card.py`, each test in a process that is killed when it hangs."""

from pathlib import Path

import pytest
from hopper_mass_on_a_card import VARIANTS
from test_hopper_gpu import MOST_HANGS, SECONDS, names, on_a_card, run

FILE = Path(__file__).with_name("hopper_mass_on_a_card.py")
# Every variant is built anew, in ten forms a dtype: each gets a process.
DTYPES = ("bfloat16", "not bfloat16")
SPLIT = {"test_every_variant_matches_the_oracle": tuple(f"{name} and {x}" for name in VARIANTS for x in DTYPES)}

hung = []


def cases():
    assert set(SPLIT) <= set(names(FILE))
    return [(name, only) for name in names(FILE) for only in SPLIT.get(name, (None,))]


@pytest.mark.parametrize(("name", "only"), [pytest.param(*case, marks=on_a_card) for case in cases()])
@pytest.mark.timeout(SECONDS + 60)
def test_on_a_card(name, only):
    if len(hung) >= MOST_HANGS:
        pytest.fail(f"not run: {' and '.join(hung)} hung before")
    code, said = run(FILE, name, SECONDS, only)
    if code is None:
        hung.append(name)
        pytest.fail(f"killed after {SECONDS} s\n{said[-4000:]}")
    assert code == 0, said[-8000:]

"""Runs `hopper_mass_on_a_card.py`."""

from hopper_mass_on_a_card import VARIANTS
from killed import card_tests

# Every variant is built anew, in ten forms a dtype: each gets a process.
ONLY = tuple(f"{name} and {dtype}" for name in VARIANTS for dtype in ("bfloat16", "not bfloat16"))
test_on_a_card = card_tests("hopper_mass_on_a_card.py", {"test_every_variant_matches_the_oracle": ONLY})

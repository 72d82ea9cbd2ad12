"""Runs `hopper_mass_on_a_card.py`."""

from killed import card_tests

# Ten forms a dtype are built: each dtype gets a process.
ONLY = ("bfloat16", "not bfloat16")
test_on_a_card = card_tests("hopper_mass_on_a_card.py", {"test_it_matches_the_oracle": ONLY})

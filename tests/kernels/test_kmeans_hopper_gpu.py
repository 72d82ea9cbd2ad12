"""Runs `kmeans_hopper_on_a_card.py`."""

from killed import card_tests
from kmeans_hopper_on_a_card import VARIANTS

# Every variant is built anew, in several forms a dtype: each gets a process.
ONLY = tuple(f"{name} and {dtype}" for name in VARIANTS for dtype in ("bfloat16", "not bfloat16"))
test_on_a_card = card_tests("kmeans_hopper_on_a_card.py", {"test_every_variant_finds_the_nearest": ONLY})

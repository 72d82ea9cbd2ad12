"""Runs `hopper_clusters_on_a_card.py`."""

from hopper_clusters_on_a_card import VARIANTS
from killed import card_tests

# Every variant is built anew: each gets a process.
test_on_a_card = card_tests("hopper_clusters_on_a_card.py", {"test_every_variant_matches_the_oracle": tuple(VARIANTS)})

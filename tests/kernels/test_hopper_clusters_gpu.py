"""Runs `hopper_clusters_on_a_card.py`."""

from killed import card_tests

test_on_a_card = card_tests("hopper_clusters_on_a_card.py", {})

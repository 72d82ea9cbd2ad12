"""Runs `hopper_on_a_card.py`, and tests what runs it."""

from killed import card_tests, names, run

# Tiles of 128 rows and of 64 are built apart: each gets a process.
test_on_a_card = card_tests("hopper_on_a_card.py", {"test_it_matches_the_oracle": ("rows128", "rows64")})


def test_a_hang_is_killed_and_a_failure_is_one(tmp_path):
    (tmp_path / "some.py").write_text(
        "import time\ndef test_hangs():\n    time.sleep(100)\ndef test_fails():\n    assert 0\n"
        "def test_is_fine():\n    pass\n"
    )
    assert names(tmp_path / "some.py") == ["test_hangs", "test_fails", "test_is_fine"]
    assert run(tmp_path / "some.py", "test_hangs", 4)[0] is None
    assert run(tmp_path / "some.py", "test_fails", 60)[0] == 1
    assert run(tmp_path / "some.py", "test_is_fine", 60)[0] == 0

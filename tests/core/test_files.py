"""Files that are one step, links that stay links, and text however its encoding is marked."""

import errno
import os

import pytest

from dittools import files


def failing_at(call, number):
    """`call`, which finds no space left the `number`-th time."""
    count = 0

    def fails(*arguments):
        nonlocal count
        count += 1
        if count == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments)

    return fails


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("old", [{}, {"a": "1", "b": "1"}, {"b": "1"}])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_files_that_are_one_step_are_all_new_or_all_as_they_were(tmp_path, monkeypatch, old, number, links):
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(files.os, "replace", failing_at(os.replace, number))
    if not links:
        monkeypatch.setattr(files.os, "link", failing_at(os.link, 1))
    new = {"a": "2", "b": "2"}
    if number < 3:
        with pytest.raises(OSError), files.together(*(tmp_path / name for name in new)) as parts:
            for part in parts:
                part.write_text("2")
    else:
        with files.together(*(tmp_path / name for name in new)) as parts:
            for part in parts:
                part.write_text("2")
    assert texts(tmp_path) == (new if number == 3 else old)


def test_a_folder_that_is_one_step_with_a_file_goes_again_when_the_file_fails(tmp_path, monkeypatch):
    (tmp_path / "frames").mkdir()
    monkeypatch.setattr(files.os, "replace", failing_at(os.replace, 2))
    with pytest.raises(OSError), files.together(tmp_path / "frames", tmp_path / "frames.json") as (folder, record):
        folder.mkdir()
        (folder / "0.png").write_text("x")
        record.write_text("{}")
    assert list(tmp_path.rglob("*")) == [tmp_path / "frames"]


def test_a_link_stays_and_its_target_is_replaced_whole(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").write_text("old")
    (tmp_path / "far").symlink_to("disk/real")
    (tmp_path / "link").symlink_to("far")
    (tmp_path / "new").symlink_to("disk/none")
    for name in ("link", "new"):
        files.write_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "new"
    assert texts(tmp_path / "disk") == {"real": "new", "none": "new"}


def test_unfinished_files_of_the_longest_names_fit(tmp_path):
    name = "ü" * 125 + ".json"
    files.write_text(tmp_path / name, "x")
    assert texts(tmp_path) == {name: "x"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_of_an_encoding_are_no_part_of_the_text(tmp_path, encoding):
    (tmp_path / "a").write_bytes("é\r\nb".encode(encoding))
    assert files.read_text(tmp_path / "a") == "é\r\nb"


def test_what_is_no_text_or_no_json_is_a_value_error(tmp_path):
    (tmp_path / "a").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError):
        files.read_text(tmp_path / "a")
    for text in ("[" * 100_000, '{"a":' * 100_000, "{", ""):
        with pytest.raises(ValueError):
            files.parse_json(text)

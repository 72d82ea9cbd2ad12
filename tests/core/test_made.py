"""What dittools wrote is recognised by what it says of itself, and nothing else is."""

import json

import pytest

from dittools import files, made


def record_of(folder, name, **changes):
    """A video and its record; a change to None leaves a key out."""
    (folder / name).write_bytes(b"video")
    values = {"dittools": "0.1.0", "output": f"elsewhere/{name}", "output_sha256": files.sha256(folder / name)}
    found = {key: value for key, value in (values | changes).items() if value is not None}
    path = folder / f"{name.split('.')[0]}.json"
    path.write_text(json.dumps(found))
    return folder / name, path


def test_a_video_is_that_of_its_record_while_nobody_changed_it(tmp_path):
    video, record = record_of(tmp_path, "a.mp4")
    assert made.video(video, record) and made.record(record, video)["dittools"] == "0.1.0"
    video.write_bytes(b"mine")
    assert not made.video(video, record)
    other = tmp_path / "a.gif"
    other.write_bytes(b"video")
    assert not made.video(other, record) and made.record(record, other), "the record alone may be replaced"


def test_a_record_of_an_older_version_has_no_digest(tmp_path):
    assert made.video(*record_of(tmp_path, "a.mp4", output_sha256=None))


@pytest.mark.parametrize(
    "changes",
    [
        {"dittools": None},
        {"dittools": {"method": "svg"}},  # settings of a tool in a file of another
        {"output": "b.mp4"},  # a copy that somebody keeps under another name
        {"kind": "cache", "schema": 1},  # profiles and benches say dittools too
        {"rows": []},
        {"dittools_profile": 1},
    ],
)
def test_other_json_is_no_record(tmp_path, changes):
    video, record = record_of(tmp_path, "a.mp4", **changes)
    assert made.record(record, video) is None and not made.video(video, record)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_json_object_is_nobodys(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    assert made.record(tmp_path / "a.json", tmp_path / "a.mp4") is None
    assert made.profile(tmp_path / "a.json") is None and made.profile(tmp_path / "none.json") is None


def test_tables_are_those_of_the_profile_beside_them(tmp_path):
    tables, path = tmp_path / "p.safetensors", tmp_path / "p.json"
    tables.write_bytes(b"tables")
    values = {"kind": "attention", "dittools_profile": 1, "arrays": {"a.b": [2]}}
    assert not made.tables(tables, path)
    for digest, ours in ((None, True), (files.sha256(tables), True), ("0" * 64, False)):
        path.write_text(json.dumps(values | ({} if digest is None else {"arrays_sha256": digest})))
        assert made.tables(tables, path) == ours
    path.write_text(json.dumps(values | {"arrays": {}}))
    assert not made.tables(tables, path)
    path.write_text(json.dumps({"kind": "cache", "schema": 1, "match": {}}))
    assert made.profile(path) and not made.tables(tables, path)

"""More of mixdata.json: keys of files whose suffix is a pattern, too, and files from Windows."""

import pytest

from src.utils.mixdata import find_files, read_mixdata


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/*_depth.*", {"a_depth.png": "a", "b_depth.npy": "b", "1.5_depth.png": "1.5"}),
        ("/*_depth.[np][np]*", {"a_depth.png": "a", "b_depth.npy": "b", "1.5_depth.png": "1.5"}),
        ("/*_depth.pn?", {"a_depth.png": "a", "1.5_depth.png": "1.5"}),
        ("/*_depth*", {"a_depth.png": "a_depth", "b_depth.npy": "b_depth", "1.5_depth.png": "1.5_depth"}),
        ("/f.*", {"f.001.png": "001", "f.002.tar.gz": "002.tar"}),  # more than a suffix
        ("/f.*.*", {"f.001.png": "001", "f.002.tar.gz": "002.tar"}),
        ("/*png", {"a_depth.png": "a_depth", "1.5_depth.png": "1.5_depth", "f.001.png": "f.001", "x.png": "x"}),
        ("/x.*", {"x.png": ""}),
    ],
)
def test_suffix_of_a_pattern_may_have_wildcards(tmp_path, pattern, expected):
    for name in ("a_depth.png", "b_depth.npy", "1.5_depth.png", "f.001.png", "f.002.tar.gz", "x.png"):
        (tmp_path / name).touch()
    assert {path[len(str(tmp_path)) + 1 :]: key for path, key in find_files(tmp_path, pattern).items()} == expected


def test_mixdata_of_a_windows_editor(tmp_path):
    path = tmp_path / "mixdata.json"
    path.write_bytes('\ufeff{"img": {"A": "/a/*"},\r\n "depth": {"A": "/b/*"}}\r\n'.encode())
    assert read_mixdata(path) == [("A", "/a/*", "/b/*", "inverse_depth", None)]

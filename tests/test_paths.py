"""Paths as people write them."""

import pathlib
import pwd

import pytest

from lawm_jax.data import paths


def test_a_tilde_is_the_home_folder_and_urls_stay(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    root = pwd.getpwuid(0)
    for given, expected in {
        "~": "/home/ann",
        "~/x": "/home/ann/x",
        f"~{root.pw_name}/x": f"{root.pw_dir}/x",
        "~nobody-of-that-name/x": "~nobody-of-that-name/x",
        "a/~/x": "a/~/x",
        "": "",
        "gs://~/x": "gs://~/x",
    }.items():
        assert paths.expand(given) == expected
    assert paths.expand(pathlib.Path("~/x")) == "/home/ann/x"
    with pytest.raises(TypeError):
        paths.expand(None)

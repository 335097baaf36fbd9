"""Paths as people write them."""

import glob
import os
import pathlib
import pwd
import shutil
import sys

import fsspec  # noqa: F401
import pytest

from lawm_jax.data import catalog, paths, video


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


def test_an_absolute_path_is_that_of_the_same_file(tmp_path, monkeypatch):
    _tree(tmp_path, "day/a.mp4", "a.mp4", "far/away/b.mp4")
    (tmp_path / "day/link").symlink_to("../far/away")
    (tmp_path / "short").symlink_to("day")
    monkeypatch.chdir(tmp_path / "short")
    here = os.path.realpath(tmp_path)
    for given, expected in {
        "a.mp4": f"{here}/day/a.mp4",
        ".": f"{here}/day",
        "./x/": f"{here}/day/x/",
        "../a.mp4": f"{here}/a.mp4",  # not beside the link
        "link/../away/b.mp4": f"{here}/day/link/../away/b.mp4",  # in far, where the link leads
        "**/*.mp4": f"{here}/day/**/*.mp4",
        "~nobody-of-that-name/x": f"{here}/day/~nobody-of-that-name/x",
    }.items():
        assert paths.absolute(given) == expected
        if os.path.exists(given):
            assert os.path.samefile(given, expected)
    for given in "/x/../y", "~/x", "gs://bucket/x", "":
        assert paths.absolute(given) == given


@pytest.mark.parametrize(
    "given, expected",
    [
        ("web/**/*.mp4", "{}/web/**/*.mp4"),
        ("videos:./web", "videos:{}/web"),
        (["a", "/b", "gs://c/d"], ["{}/a", "/b", "gs://c/d"]),
        ("records:out", "records:{}/out"),
        ("droid:droid/1.0.1?camera=left", "droid:{}/droid/1.0.1?camera=left"),
        ("recon:./recon?rate=3", "recon:{}/recon?rate=3"),
        ("lerobot:set", "lerobot:{}/set"),
        ("tfds:set?rate=25&video=a/b", "tfds:{}/set?rate=25&video=a/b"),
        ("swm:set?state=proprio", "swm:{}/set?state=proprio"),
        ("webdataset:x/{000..123}.tar", "webdataset:{}/x/{000..123}.tar"),
        ("webdataset:{a,b}/*.tar", "webdataset:{}/{a,b}/*.tar"),
        ("webdataset:{/a,/b}/0.tar", "webdataset:{/a,/b}/0.tar"),
        ("webdataset:s3://bucket/{0..9}.tar", "webdataset:s3://bucket/{0..9}.tar"),
        ("mini:panda", "mini:panda"),
        ("mini:data/panda", "mini:{}/data/panda"),
        ("records:/x", "records:/x"),
        ("", ""),
    ],
)
def test_a_source_of_any_kind_is_made_absolute(given, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill = lambda text: text.replace("{}", os.path.realpath(tmp_path))  # noqa: E731
    expected = list(map(fill, expected)) if isinstance(expected, list) else fill(expected)
    assert catalog.absolute(given) == expected
    assert catalog.absolute(expected) == expected
    if given:
        assert catalog.parse("x", given).kind == catalog.parse("x", expected).kind
        assert catalog.parse("x", given).options == catalog.parse("x", expected).options


def test_a_folder_whose_name_looks_like_a_pattern_is_no_part_of_one(tmp_path, monkeypatch):
    (tmp_path / "{a,b}").mkdir()
    monkeypatch.chdir(tmp_path / "{a,b}")
    with pytest.raises(ValueError, match=r"\{0..9\}.tar: expected an absolute path, since .*a,b"):
        catalog.absolute("webdataset:{0..9}.tar")


def _tree(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")


def test_each_real_file_is_listed_once_whatever_links_lead_to_it(tmp_path):
    _tree(tmp_path, "z/a.mp4", "z/deep/b.MP4", "z/.hidden/c.mp4", "other/c.mp4", "z/notes.txt")
    z = tmp_path / "z"
    (z / "latest").symlink_to(".")  # in circles
    (z / "again").symlink_to("..")
    (z / "0first.mp4").symlink_to("a.mp4")
    (z / "A").symlink_to("deep")
    (z / "gone.mp4").symlink_to("nowhere.mp4")
    (z / "self.mp4").symlink_to("self.mp4")
    (z / "hard.mp4").hardlink_to(z / "a.mp4")
    (z / "outside.mp4").symlink_to(tmp_path / "other/c.mp4")
    # other/c.mp4 lies one link away on either path.
    with pytest.warns(UserWarning, match="ignored 2 links to missing files, such as gone.mp4"):
        files = paths.below(str(z), (".mp4",))
    assert files == ["a.mp4", "again/other/c.mp4", "deep/b.MP4"]
    for link in ("again", "gone.mp4", "self.mp4"):
        (z / link).unlink()
    assert paths.below(str(z), (".mp4",)) == ["a.mp4", "deep/b.MP4", "outside.mp4"]
    assert paths.below(str(tmp_path), (".mp4",)) == ["other/c.mp4", "z/a.mp4", "z/deep/b.MP4"]
    assert paths.below(str(tmp_path / "none")) == []


def test_patterns_match_as_globs_do_without_following_circles(tmp_path, monkeypatch):
    _tree(tmp_path, "a.mp4", "d/b.mp4", "d/e/c.avi", "d/e/f/d.mp4", "d/.g/x.mp4", "d/e/f/no.txt")
    monkeypatch.chdir(tmp_path)
    suffixes = (".mp4", ".avi")
    patterns = ["**/*.mp4", "**", "d/**", "d/**/f/*", "*/e/**/*.mp4", "**/e/**/*", "d/*.mp4"]
    patterns += ["*.m?4", "d/**/*.mp4", f"{tmp_path}/**/[bc].*", "d/none/**/*.mp4", "**/**/*.avi"]
    for pattern in patterns:
        found = glob.glob(pattern, recursive=True)  # right where there are no links
        expected = {p for p in found if p.endswith(suffixes) and os.path.isfile(p)}
        assert paths.matching(pattern, suffixes) == sorted(expected), pattern
    for name in "pqrs":  # 4^40 paths
        (tmp_path / name).symlink_to(".")
    assert paths.matching("**/*.mp4", suffixes) == ["a.mp4", "d/b.mp4", "d/e/f/d.mp4"]
    assert paths.matching("?/b.mp4", suffixes) == ["d/b.mp4"]


def test_an_identity_does_not_depend_on_the_spelling(tmp_path, monkeypatch):
    _tree(tmp_path, "day/a.mp4")
    (tmp_path / "link").symlink_to("day")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    real = os.path.realpath(tmp_path / "day/a.mp4")
    same = ["day/a.mp4", "./day//a.mp4", "day/../day/a.mp4", "link/a.mp4", "~/day/a.mp4"]
    for one in [*same, str(tmp_path / "link/a.mp4"), f"file://{tmp_path}/link/a.mp4"]:
        assert paths.identity(one) == real
    assert paths.identity("gs://b//x/y/") == paths.identity("gs://b/x/y") == "gs://b/x/y"
    assert paths.identity("gs://b/X/y") != "gs://b/x/y"


def test_links_put_no_video_on_both_sides_of_the_split(tmp_path, videos):
    folder = tmp_path / "day"
    shutil.copytree(videos, folder)
    before = video.split_videos(str(folder), 0.4)
    (folder / "latest").symlink_to(".")
    (tmp_path / "picked").mkdir()
    (tmp_path / "picked" / "one.mp4").symlink_to("../day/1.mp4")
    os.link(folder / "2.mp4", folder / "aside.mp4")
    (folder / "0.webm").symlink_to("1.mp4")
    assert video.split_videos(str(folder), 0.4)[0] != []
    assert len(video.find_videos(str(folder))) == 6
    # Links by later names move no file to the other side.
    os.unlink(folder / "aside.mp4")
    assert video.split_videos(str(folder), 0.4) == before
    for pattern in str(tmp_path), f"{tmp_path}/**/*", [str(tmp_path), str(folder)]:
        train, test = video.split_videos(pattern, 0.4)
        real = [{os.path.realpath(path) for path in side} for side in (train, test)]
        assert len(train) + len(test) == 6 and not real[0] & real[1]


def test_a_bucket_without_its_packages_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):  # which other tests may have loaded
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    with pytest.raises(ImportError, match=r"gs://b/x: expected gcsfs: pip install 'lawm_jax\[buc"):
        paths.exists("gs://b/x")


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    paths.write(path, "first")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        paths.write(path, "second")
    assert path.read_bytes() == b"first"


def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="File exists: '.*file/a.json'"):
        paths.write(tmp_path / "file" / "a.json", "x")

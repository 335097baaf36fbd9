"""What the items of a source are, however its path is spelt: held out means held out."""

import json
import os
import shutil

import pytest
import test_lerobot
import test_recon
from test_data import config
from test_ingest import ingest

from lawm_jax.data import mini, pipeline


def _most(folder, names):
    """Names of all but the first three episodes in a folder of lawm_mini."""
    return {name for name in names if name[0].isdigit()} - set(sorted(names)[:6])


def found(spec, split="train", **data):
    sources = {"x": str(spec)}
    return pipeline.identities(config(sources=sources, mixture={"x": 1.0}, **data), "x", split)


def test_videos_spelt_in_any_way_are_the_same(videos, tmp_path, monkeypatch):
    folder = tmp_path / "day"
    shutil.copytree(videos, folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("day")
    (tmp_path / "list.csv").write_text("path,start,end\nday/0.mp4,0,2\nday/0.mp4,2,\nday/1.mp4,,\n")
    real = {os.path.realpath(folder / f"{i}.mp4") for i in range(6)}
    direct = pipeline.identities(config(folder), "videos")
    assert set(direct) < real and len(direct) == 5
    assert set(direct) | set(pipeline.identities(config(folder), "videos", "test")) == real
    for spec in f"videos:{folder}", "videos:day/", "videos:./day", "videos:~/day", "videos:link":
        assert found(spec) == direct
    assert set(found(f"videos:{tmp_path}/**/*.mp4")) <= real
    listed = [set(found("videos:list.csv", split)) for split in ("train", "test")]
    assert sorted(set.union(*listed)) == sorted(real)[:2] and not listed[0] & listed[1]


@pytest.mark.parametrize("kind", ["videos", "mini", "recon", "lerobot"])
def test_records_are_what_they_were_made_from(kind, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if kind == "videos":
        shutil.copytree(videos, "data")
    elif kind == "mini":
        shutil.copytree(f"{mini.FOLDER}/panda", "data", ignore=_most)
    elif kind == "recon":
        for i in range(4):
            test_recon.write(tmp_path / "data" / f"{i}.hdf5", 12)
    else:
        test_lerobot.write(tmp_path / "data", lengths=(20, 25, 20))
    spec = f"{kind}:{tmp_path / 'data' if kind == 'mini' else 'data'}"
    ingest(spec, "out", holdout=0.4, workers=1)
    os.symlink("out", "again")
    for split in "train", "test":
        direct = found(f"{kind}:{tmp_path}/data/", split, holdout=0.4)
        made = found("records:again/", split)
        assert set(made) == set(direct) and len(made) >= len(set(made)) > 0
    ingest("records:out", "twice", workers=1)
    assert set(found("records:twice")) == set(found("records:out"))

    # Older records do not say it: their items' paths do, where they are absolute, or are there.
    for path in (tmp_path / "out").rglob("0*.json"):
        rows = json.loads(path.read_text())
        assert all(row.pop("identity") for row in rows)
        path.write_text(json.dumps(rows))
    assert set(found("records:out")) == set(found(f"{kind}:{tmp_path}/data", holdout=0.4))
    for path in (tmp_path / "out").rglob("0*.json"):
        path.write_text("{" * 9)
    own = found("records:out"), found("records:again/./"), found("records:out", "test")
    assert own[0] == own[1] and not set(own[0]) & set(own[2])


def test_episodes_of_a_set_have_names_of_their_own(tmp_path):
    test_lerobot.write(tmp_path / "a")
    test_lerobot.write(tmp_path / "b")
    sides = [found(f"lerobot:{tmp_path}/{one}", side) for one in "ab" for side in ("train", "test")]
    assert len(set.union(*map(set, sides))) == 2 * len(test_lerobot.LENGTHS)

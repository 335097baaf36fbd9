"""Damaged metadata: whatever is in it, the error says the file; and how many files stay open."""

import copy
import json
import logging
import math
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import test_lerobot
from test_data import config
from test_ingest import ingest

from lawm_jax.data import catalog, episodes, metadata, records

WRONG = [None, 7, -1, 1e400, "x", "{0.__class__}", [], [None], {}, {"a": 1}, True, "9" * 400]


def places(tree, path=()):
    """Lists the paths of all values in a JSON tree."""
    yield path
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree if isinstance(tree, list) else [])
    )
    for key, value in items:
        yield from places(value, (*path, key))


def damaged(tree):
    """Yields copies of a JSON tree in each of which one value is gone or another."""
    for path in list(places(tree)):
        for wrong in [*WRONG, KeyError]:
            new = copy.deepcopy(tree)
            if not path:
                yield wrong if wrong is not KeyError else {}
                continue
            at = new
            for key in path[:-1]:
                at = at[key]
            if wrong is KeyError:
                del at[path[-1]]
            else:
                at[path[-1]] = wrong
            yield new


def trials(path, open_source, texts=()):
    """Opens a source with every damage of one of its files: a source, or an error that names it."""
    whole = path.read_bytes()
    variants = [json.dumps(tree).encode() for tree in damaged(json.loads(whole))]
    variants += [b"", b"\xff\xfe{", b"[" * 10**5, whole[: len(whole) // 2], b"null", *texts]
    named = 0
    for text in variants:
        path.write_bytes(text)
        try:
            open_source()
        except ValueError as error:
            named += path.name in str(error) or str(path.parent) in str(error)
            assert str(error) and "object has no attribute" not in str(error)
    path.write_bytes(whole)
    open_source()
    assert named > len(variants) / 4
    return len(variants)


@pytest.fixture(scope="module")
def tfds_set(tmp_path_factory):
    """The metadata of a TFDS set, and an empty shard."""
    root = tmp_path_factory.mktemp("tfds")
    tensor = {"tensor": {"shape": {"dimensions": ["2"]}, "dtype": "float32", "encoding": "none"}}
    steps = {"image": {"image": {}}, "action": tensor, "flag": {"tensor": {"dtype": "bool"}}}
    inner = {"sequence": {"feature": {"featuresDict": {"features": steps}}}}
    (root / "features.json").write_text(
        json.dumps({"featuresDict": {"features": {"steps": inner}}})
    )
    split = {"name": "train", "shardLengths": ["3"], "filepathTemplate": "{DATASET}-{SPLIT}.x"}
    info = {"name": "a", "fileFormat": "tfrecord", "splits": [split]}
    (root / "dataset_info.json").write_text(json.dumps(info))
    (root / "a-train.x").write_bytes(b"")
    return root


def opener(spec):
    settings = config(sources={"x": spec}, mixture={"x": 1.0}, holdout=0.4)
    settings.encoder = {}
    return lambda: catalog.source(settings, "x")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_tfds_metadata_is_a_clear_error(tfds_set, name):
    spec = f"tfds:{tfds_set}?rate=5&video=steps/image&actions=steps/action&state=steps/flag"
    assert trials(tfds_set / name, opener(spec)) > 100


def test_a_damaged_wids_index_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in "a.tar", "b.tar":
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.addfile(tarfile.TarInfo("1.mp4"))
    shards = [{"url": name, "nsamples": 1} for name in ("a.tar", "b.tar")]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}
    path = tmp_path / "index.json"
    path.write_text(json.dumps(index))
    texts = [
        b'{"shardlist": [{"url": "%s"}]}' % url for url in (b"", b"a\\u0000.tar", b"x://a.tar")
    ]
    assert trials(path, opener(f"webdataset:{path}"), texts) > 100


def test_damaged_lerobot_metadata_is_a_clear_error(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    root = test_lerobot.write(tmp_path / "set", lengths=(12, 12))
    assert trials(root / "meta/info.json", opener(f"lerobot:{root}")) > 100
    path = root / "meta/episodes.jsonl"
    first, *rest = path.read_text().splitlines()
    for row in damaged(json.loads(first)):
        path.write_text("\n".join([json.dumps(row), *rest]))
        try:
            opener(f"lerobot:{root}")()
        except ValueError as error:
            assert str(root) in str(error)


def test_damaged_metadata_of_records_is_a_clear_error(videos, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    ingest(videos, tmp_path / "out", holdout=0.4, workers=1)
    assert trials(tmp_path / "out/info.json", opener(f"records:{tmp_path}/out")) > 100


def test_values_are_named_with_what_was_expected():
    for kind, wrong in [
        ("a string", 1),
        ("a positive integer", True),
        ("a positive number", math.nan),
    ]:
        with pytest.raises(ValueError, match=f"info.json: x: expected {kind}, got {wrong}"):
            metadata.check("info.json", "x", wrong, kind)
    with pytest.raises(ValueError, match="info.json: x: expected a list, got nothing"):
        metadata.field("info.json", {}, "x", "a list")


CODE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import numpy as np
from lawm_jax.data import records
shards = records.ArrayRecords([f"{sys.argv[1]}/{i}" for i in range(100)], [1] * 100)
print([shards[i][:3].decode() for i in range(100)] == [f"{i:03}" for i in range(100)])
"""


def test_more_shards_than_files_may_be_open_are_read(tmp_path):
    from array_record.python import array_record_module

    for i in range(100):
        writer = array_record_module.ArrayRecordWriter(str(tmp_path / f"{i}"), records.OPTIONS)
        writer.write(f"{i:03}".encode())
        writer.close()
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize(
    "rate, fps, steps, said",
    [(15, 4, 4, False), (5, 4, 1, True), (6, 4, 2, True), (30, 4, 8, False), (4, 4, 1, False)]
    + [
        (10, 4, 3, True),
        (7, 4, 2, True),
        (25, 4, 6, False),
        (3.7, 4, 1, False),
        (60, 10, 6, False),
    ],
)
def test_a_source_is_read_at_the_nearest_rate_and_says_which_once(rate, fps, steps, said, caplog):
    name = f"source {rate} {fps}"
    assert episodes.stride(name, rate, fps) == episodes.stride(name, rate, fps) == steps
    nearest = min(range(1, 99), key=lambda n: abs(np.log(rate / n / fps)))
    assert steps == nearest
    warned = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warned) == said
    if said:
        assert f"{rate / steps:.4g} frames per second" in warned[0].getMessage()
    with pytest.raises(ValueError, match="fewer than 4"):
        episodes.stride("slow", 3, 4)

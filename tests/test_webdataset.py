"""Tar shards: the clips of the same files in a folder, and an index that is made once."""

import collections
import io
import json
import os
import pathlib
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import time

import fsspec
import numpy as np
import pytest
from drawing import every, write
from test_data import SIZE, F, config, processes_share, same, take

from lawm_jax.data import catalog, container, pipeline, tar_index, video, webdataset
from lawm_jax.ingest import plans
from lawm_jax.ingest import shards as ingest

COUNT, SHARDS = 15, 5
FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Writes 15 videos of 4 s, at 10 frames per second, in five container formats."""
    root, kinds = tmp_path_factory.mktemp("films"), ("mp4", "mkv", "mov", "ts", "avi")
    for i in range(COUNT):
        codec = {"avi": "mpeg4"}.get(kinds[i % 5], "libx264")
        write(root / f"{i:02}.{kinds[i % 5]}", every(40, 10), first=20 * i, codec=codec)
    return root


@pytest.fixture(scope="module")
def shards(films, tmp_path_factory):
    """Writes these videos into five tar files, with a JSON file each; the path has a comma."""
    root = tmp_path_factory.mktemp("a, b:c") / "shards"
    root.mkdir()
    for i in range(SHARDS):
        pack(root / f"{i:03}.tar", sorted(films.iterdir())[3 * i : 3 * i + 3])
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lawm_jax" / "tars"


@pytest.fixture
def cloud(shards):
    system = fsspec.filesystem("memory")
    system.put(str(shards), "/cloud", recursive=True)
    yield "memory:///cloud"
    system.rm("/cloud", recursive=True)


def pack(path, files, **options):
    with tarfile.open(path, "w", **options) as tar:
        for file in files:
            tar.add(file, file.name)
            add(tar, file.stem + ".json", b"{}")
    return path


def add(tar, name, data=b"", **about):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in about.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def source(where, split="train", **data):
    settings = config(f"webdataset:{where}", **data)
    return catalog.source(settings, "videos", split)


def everything(where, holdout=0.2):
    """Lists the items of both splits."""
    return [
        item for split in ("train", "test") for item in source(where, split, holdout=holdout).items
    ]


def content(item):
    """Reads the bytes of an item, not as the package does."""
    with fsspec.open(item.file) as file:
        file.seek(item.start)
        return file.read(item.size)


@pytest.mark.parametrize("kind", ["folder", "glob", "braces", "file", "memory"])
def test_clips_are_bit_for_bit_those_of_the_same_files_in_a_folder(films, shards, cloud, kind):
    where = {
        "folder": shards,
        "glob": f"{shards}/*.tar",
        "braces": f"{shards}/{{000..00{SHARDS - 1}}}.tar",
        "file": f"file://{shards}",
        "memory": f"{cloud}/*.tar",
    }[kind]
    found = everything(where)
    assert sorted(item.name for item in found) == sorted(os.listdir(films))
    here = catalog.source(config(films), "videos")
    there = source(where)
    for item in found:
        path = str(films / item.name)
        clips = [one.clip(x, np.random.default_rng(3)) for one, x in ((here, path), (there, item))]
        assert clips[0]["start"] == clips[1]["start"] > 0
        assert clips[1]["episode"] == f"{item.file}/{item.name}"
        np.testing.assert_array_equal(clips[0]["video"], clips[1]["video"])
        assert video.duration(item) == video.duration(path)
    for one, other in zip(here.fixed(path), there.fixed(item), strict=True):
        np.testing.assert_array_equal(one["video"], other["video"])
    parts = [list(one.parts(x, 9)) for one, x in ((here, path), (there, item))]
    assert all((a["video"] == b["video"]).all() for a, b in zip(*parts, strict=True))


def test_samples_are_those_that_webdataset_writes_and_reads(films, tmp_path):
    wds = pytest.importorskip("webdataset")
    files = sorted(films.iterdir())
    with wds.ShardWriter(f"{tmp_path}/%06d.tar", maxcount=4, verbose=0) as writer:
        for i, file in enumerate(files):
            keys = f"clip{i}", f"folder/{i}", "long/" * 40 + str(i)
            row = {"__key__": keys[i % 3], "json": {"i": i}, "cam0.mp4": file.read_bytes()}
            writer.write(row | ({"MKV": b"x" * i, "txt": "word"} if i % 2 else {}))
    expected = {}
    urls = sorted(map(str, tmp_path.glob("*.tar")))
    for row in wds.WebDataset(urls, shardshuffle=False, empty_check=False):
        for suffix in {"cam0.mp4", "mkv"} & row.keys():
            expected[row["__url__"], row["__key__"], suffix] = row[suffix]
    found = {}
    for item in everything(tmp_path):
        key = tar_index.sample(item.name)
        found[item.file, key, item.name[len(key) + 1 :].lower()] = content(item)
    assert found == expected and len(found) == COUNT + COUNT // 2 and len(urls) == 4


@pytest.mark.skipif(not shutil.which("tar"), reason="needs tar")
@pytest.mark.parametrize("kind", FORMATS)
def test_members_are_those_that_tar_extracts(tmp_path, kind):
    path, out, noise = tmp_path / "a.tar", tmp_path / "out", np.random.default_rng(0)
    with tarfile.open(path, "w", format=FORMATS[kind]) as tar:
        names = ["a.mp4", "./b.mp4", "d/e/f.WEBM", "d/.hidden.mp4", "._a.mp4", "d/text.txt", "no"]
        names += ["a.mp4", "é b.mkv", "q" * 80 + "/" + "w" * 90 + ".mp4"]
        names += ["x" * 300 + "/y.mp4"] if kind == "pax" else []
        for name in names:
            add(tar, name, noise.bytes(int(noise.integers(2000))))
        add(tar, "folder.mp4", type=tarfile.DIRTYPE)
        add(tar, "link.mp4", type=tarfile.SYMTYPE, linkname="a.mp4")
        add(tar, "empty.mp4")
    out.mkdir()
    long = ["--exclude", "x" * 300] if kind == "pax" else []  # longer than a file system's names
    subprocess.run(["tar", "-xf", path, "-C", out, *long], check=True)
    expected = {
        str(file.relative_to(out)): file.read_bytes()
        for file in map(pathlib.Path, video.find_videos(str(out)))
        if not file.is_symlink()
    }
    found = {item.name: content(item) for item in everything(path)}
    if long:
        assert len(found.pop("x" * 300 + "/y.mp4")) > 0
    assert found == expected and len(found) == 6


@pytest.mark.skipif(not shutil.which("tar"), reason="needs tar")
def test_a_sparse_member_is_refused_by_name(tmp_path, films):
    with open(tmp_path / "sparse.mp4", "wb") as file:
        file.seek(2**20)
        file.write(b"x" * 4096)
        file.truncate(2**21)
    shutil.copy(films / "00.mp4", tmp_path)
    command = ["tar", "-C", tmp_path, "-cSf", tmp_path / "a.tar", "sparse.mp4", "00.mp4"]
    subprocess.run(command, check=True)
    good, sparse = everything(tmp_path / "a.tar")
    assert content(good) == (films / "00.mp4").read_bytes()
    with pytest.raises(video.UnreadableVideo, match="a.tar/sparse.mp4: a sparse member"):
        source(tmp_path / "a.tar").clip(sparse, np.random.default_rng(0))


def test_one_two_and_four_processes_and_workers_read_the_same_batches(shards):
    settings = config(f"webdataset:{shards}")
    whole = processes_share(settings)
    settings.data.workers = 2
    stream = pipeline.clips(settings)
    same(take(stream, 2), whole[:2])
    stream.close()


def damaged(films, root):
    """Writes shards with every kind of damage; returns part of a reason by the item's name."""
    files, root = sorted(films.iterdir()), root / "damaged"
    root.mkdir()
    for i in range(3):
        pack(root / f"good{i}.tar", files[3 * i : 3 * i + 3])
    with tarfile.open(root / "member.tar", "w") as tar:
        tar.add(files[9], "whole.mkv")
        add(tar, "text.mp4", b"This is no video. " * 99)
        add(tar, "empty.mp4")
        data = files[10].read_bytes()
        add(tar, "cut.mp4", data[: len(data) // 2])
    data = pack(root / "cut.tar", files[11:13]).read_bytes()
    last = tarfile.open(root / "cut.tar").getmember(files[12].name)
    (root / "cut.tar").write_bytes(data[: last.offset_data + 99])
    (root / "unmarked.tar").write_bytes(data[: last.offset])
    header = bytearray(data)
    header[last.offset : last.offset + 512] = b"\xff" * 512
    (root / "header.tar").write_bytes(header)
    (root / "two.tar").write_bytes(data + bytes(2**20) + data)
    (root / "gzip.tar").write_bytes(b"\x1f\x8b" + bytes(999))
    (root / "text.tar").write_text("no tar" * 500)
    (root / "empty.tar").write_bytes(b"")
    os.mkfifo(root / "pipe.tar")
    return root, {
        "member.tar/text.mp4": "Invalid data",
        "member.tar/empty.mp4": "empty file",
        "member.tar/cut.mp4": "",
        f"cut.tar/{files[12].name}": "truncated: it should end at byte",
        "unmarked.tar": "without the end marker",
        "header.tar": "damaged after 2 complete members: damaged header at byte",
        "two.tar": "bytes follow the end marker",
        "gzip.tar": "expected an uncompressed tar file, got gzip",
        "text.tar": "invalid header",
        "empty.tar": "empty file",
    }


def test_a_broken_member_and_a_damaged_shard_cost_themselves_and_are_named_once(
    films, tmp_path, caplog
):
    root, reasons = damaged(films, tmp_path)
    log = tmp_path / "skipped.jsonl"
    settings = config(f"webdataset:{root}", holdout=0.0)
    stream = pipeline.clips(settings, skipped=str(log))
    read = np.concatenate([batch["episode"] for batch in take(stream, 20)])
    _, *again = [pipeline.clips(settings, skipped=str(log)) for _ in range(2)]
    take(again[0], 20)  # of a restarted run
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    found = {row["path"].removeprefix(f"{root}/"): row["reason"] for row in rows}
    items = source(root, holdout=0.0).items
    held_out = {str(item).removeprefix(f"{root}/") for item in source(root, "test").items}
    expected = {name: text for name, text in reasons.items() if name not in held_out}
    assert len(rows) == len(found) and found.keys() == expected.keys() and len(found) >= 9
    assert all(text in found[name] for name, text in expected.items())
    shown = {items[number].name for number in set(read.tolist())}
    assert {"whole.mkv", "11.mkv"} <= shown  # what comes before the damage is used
    assert "tar files are damaged or missing" in caplog.text and f"{root}/cut.tar" in caplog.text


def test_headers_that_were_changed_at_random_raise_nothing_and_take_no_time(films, tmp_path):
    draw, begin = random.Random(0), time.process_time()
    data = {kind: io.BytesIO() for kind in FORMATS}
    for kind, file in data.items():
        with tarfile.open(fileobj=file, mode="w", format=FORMATS[kind]) as tar:
            for i in range(6):
                add(tar, f"é{i}/" * (30 if kind != "ustar" else 1) + "a.mp4", bytes(700 * i))
    outcomes = collections.Counter()
    for _ in range(6000):
        changed = bytearray(draw.choice(list(data.values())).getvalue())
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed) // 512) * 512 + draw.randrange(512)] = draw.choice(
                [0, 48, 55, 76, 83, 120, 128, 255]
            )
        for at in range(0, len(changed), 512):
            if changed[at + 257 : at + 262] == b"ustar":  # a correct checksum
                changed[at + 148 : at + 156] = b" " * 8
                changed[at + 148 : at + 155] = b"%06o\0" % sum(changed[at : at + 512])
        found, problems = tar_index.scan(io.BytesIO(bytes(changed)), len(changed))
        assert all(0 <= start <= start + size <= len(changed) for start, size in found.values())
        outcomes[len(problems)] += 1
    assert outcomes[0] > 100 and outcomes[1] > 100 and time.process_time() - begin < 20


class Counted(fsspec.AbstractFileSystem):
    """The local file system as a remote one, which counts requests and may fail."""

    protocol, cachable, opened, asked = "counted", False, [], []
    failure, late = None, False

    def ls(self, path, detail=True, **_):
        names = sorted(os.listdir(path))
        return [self._about(f"{path}/{name}") for name in names] if detail else names

    def info(self, path, **_):
        self.asked.append(path)
        return self._about(path)

    def _about(self, path):
        status = os.stat(path)
        kind = "directory" if os.path.isdir(path) else "file"
        about = {"name": path, "size": status.st_size, "type": kind}
        return about | {"ETag": f"{status.st_mtime_ns}"}

    def _open(self, path, mode="rb", **_):
        self.opened.append(path)
        if self.failure and not self.late:
            raise self.failure
        return Late(path, self.failure) if self.failure else open(path, mode)


class Late(io.FileIO):
    """A file that can't be read from its second member on."""

    def __init__(self, path, failure):
        super().__init__(path)
        self.failure = failure

    def read(self, size=-1):
        if self.tell() > 2048:
            raise self.failure
        return super().read(size)


@pytest.fixture
def counted(monkeypatch):
    fsspec.register_implementation("counted", Counted, clobber=True)
    for name in "opened", "asked":
        monkeypatch.setattr(Counted, name, [])
    return Counted


def test_the_index_is_made_once_and_again_where_a_shard_has_changed(films, counted, tmp_path):
    files, root = sorted(films.iterdir()), tmp_path / "shards"
    root.mkdir()
    for i in range(10):
        pack(root / f"{i}.tar", files[i : i + 2])
    where = f"counted://{root}/{{0..9}}.tar"
    first = everything(where)
    assert sorted(counted.opened) == [f"{root}/{i}.tar" for i in range(10)]
    assert not counted.asked  # the listing of the folder tells enough
    counted.opened.clear()
    assert everything(where) == first and everything(f"counted://{root}") == first
    assert everything(f"counted://{root}/[0-4].tar") == [i for i in first if i.file[-5] in "01234"]
    assert not counted.opened
    pack(root / "4.tar", files[:5])
    second = everything(where)
    assert counted.opened == [f"{root}/4.tar"] and len(second) == len(first) + 3
    names = {item.name for item in second if item.file.endswith("4.tar")}
    assert names == {file.name for file in files[:5]}


def test_a_damaged_index_is_made_again(shards, cache):
    wanted = everything(shards)
    stored = [path for path in cache.rglob("*") if path.is_file()]
    assert len(stored) == SHARDS + 1
    for change in (
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: data[: len(data) // 2],
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    ):
        for path in stored:
            path.write_bytes(change(path.read_bytes()))
        assert everything(shards) == wanted
    assert everything(shards) == wanted and sorted(cache.rglob("*.*")) == sorted(stored)


def test_processes_that_make_the_index_at_once_agree(shards, cache):
    code = (
        "import sys, types; from lawm_jax.data import tar_index, webdataset;"
        "found, keys = webdataset.find('x', sys.argv[1]);"
        "index = tar_index.Index('x', found, tar_index.cache_folder());"
        "print([index.item(i, k) for i in range(len(found)) for k in range(3)])"
    )
    command = [sys.executable, "-c", code, str(shards)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate()[0] for process in running}
    assert len(printed) == 1 and printed.pop().count("Slice(") == COUNT
    assert len([path for path in cache.rglob("*") if path.is_file()]) == SHARDS + 1


def test_helping_processes_make_the_lists(shards, cache):
    found, _ = webdataset.find("x", str(shards))
    work = json.dumps([os.getpid(), str(cache), found])
    command = [sys.executable, "-m", "lawm_jax.data.tar_index"]
    subprocess.run(command, input=work, text=True, check=True)
    lists = {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}
    assert len(lists) == SHARDS and len(everything(shards)) == COUNT
    assert lists == {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("late", [False, True])
def test_a_store_that_fails_stops_the_indexing_and_leaves_no_wrong_index(
    shards, counted, monkeypatch, late
):
    monkeypatch.setattr(Counted, "late", late)
    monkeypatch.setattr(Counted, "failure", TimeoutError("slow"))
    with pytest.raises(OSError, match=r"\.tar: can't be indexed: slow"):
        everything(f"counted://{shards}")
    for failure in PermissionError("not yours"), ValueError("no ranges"):
        monkeypatch.setattr(Counted, "failure", failure)
        with pytest.raises(ValueError, match=f"no videos in 5 tar files.*000.tar: {failure}"):
            everything(f"counted://{shards}")
    monkeypatch.setattr(Counted, "failure", TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        everything(f"counted://{shards}")
    monkeypatch.setattr(Counted, "failure", None)
    assert len(everything(f"counted://{shards}")) == COUNT


def test_a_wids_index_lists_the_shards(shards, cloud, tmp_path):
    rows = [{"url": f"{i:03}.tar", "nsamples": 3} for i in (3, 1, 0)]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": rows}
    copy = shutil.copytree(shards, tmp_path / "copy")
    (copy / "index.json").write_text(json.dumps(index))
    found = source(copy / "index.json", holdout=0.0)
    assert len(found.items) + len(source(copy / "index.json", "test", holdout=0.0).items) == 9
    assert {item.file[-7:] for item in everything(copy / "index.json")} == {
        "000.tar",
        "001.tar",
        "003.tar",
    }
    fsspec.filesystem("memory").pipe("/cloud/index.json", json.dumps(index).encode())
    assert len(everything("memory://cloud/index.json")) == 9
    rows.append({"url": f"{cloud}/004.tar", "nsamples": 3})
    (copy / "index.json").write_text(json.dumps(index))
    assert f"{cloud}/004.tar" in {item.file for item in everything(copy / "index.json")}
    (copy / "index.json").write_text('{"shardlist": [{"nsamples": 3}]}')
    with pytest.raises(ValueError, match="index.json: url: expected a string, got nothing"):
        source(copy / "index.json")


def test_remote_shards_are_on_the_sides_of_local_ones(shards, cloud):
    def sides(where):
        return [
            {item.file[-7:] for item in source(where, split, holdout=0.4).items}
            for split in ("train", "test")
        ]

    wanted = sides(shards)
    assert len(wanted[1]) in (1, 2) and not wanted[0] & wanted[1]
    for root in "memory://cloud", "memory:///cloud", f"file://{shards}":
        for rest in "", "/*.tar", "/{000..004}.tar", "/{00[0-2],00[34]}.tar":
            assert sides(root + rest) == wanted


def test_a_shard_is_on_one_side_which_depends_on_its_name_alone(films, tmp_path, caplog):
    file, root = sorted(films.iterdir())[0], tmp_path / "shards"
    (root / "more").mkdir(parents=True)
    for i in range(60):
        pack(root / f"{i}.tar", [file])
    sides = {split: {i.file for i in source(root, split).items} for split in ("train", "test")}
    assert not sides["train"] & sides["test"] and 4 < len(sides["test"]) < 22
    for i in range(20):
        pack(root / "more" / f"{i}.tar", [file])
    for where in root, f"{root}/{{0..59}}.tar", f"{root}/**/*.tar", f"{root}/{{more/*,*}}.tar":
        for split in sides:
            assert sides[split] <= {item.file for item in source(where, split).items}
    moved = root.rename(tmp_path / "moved")
    assert sides["test"] <= {
        i.file.replace(str(moved), str(root)) for i in source(moved, "test").items
    }
    source(f"{moved}/{{1,2}}.tar", holdout=0.05)
    assert "50.0% of the videos are held out, not 5.0%" in caplog.text


def test_samples_of_a_single_shard_are_split_and_their_videos_stay_together(
    films, tmp_path, caplog
):
    file = sorted(films.iterdir())[0]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(60):
            tar.add(file, f"{i % 30}.cam{i // 30}.mp4")
    train, test = (source(tmp_path / "a.tar", split).items for split in ("train", "test"))
    keys = [{tar_index.sample(item.name) for item in side} for side in (train, test)]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 30 and 1 <= len(keys[1]) <= 13
    assert len(train) == 2 * len(keys[0]) and len(test) == 2 * len(keys[1])
    pack(tmp_path / "b.tar", [file])
    assert len(source(tmp_path / "b.tar").items) == len(source(tmp_path / "b.tar", "test").items)
    assert "is the only sample: it is used for training and testing" in caplog.text


def test_what_is_no_tar_file_or_not_there_is_an_error(films, shards, tmp_path, monkeypatch):
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "7.tar.gz").write_bytes(b"")
    for where, message in (
        (tmp_path / "none", r"no tar files \*.tar in '.*none'; there is no such file or folder"),
        (packed, "no tar files .*; 7.tar.gz: expected uncompressed tar files"),
        (tmp_path / "none.tar", "none.tar: no such file"),
        (tmp_path / "a.tar.gz", "a.tar.gz: expected uncompressed tar files"),
        (f"{tmp_path}/{{0..9}}.tgz", "0.tgz: expected uncompressed tar files"),
        (films, "no tar files"),
        ("memory://nowhere/*.tar", "no tar files"),
        ("memory://nowhere", "nowhere|no tar files"),
        (tmp_path / "none.json", "none.json: expected a wids index"),
        ("what://x/{0..9}.tar", "what"),
        (f"{shards}?cut=3", "unexpected keyword argument 'cut'"),
    ):
        with pytest.raises(ValueError, match=message):
            source(where)
    with tarfile.open(tmp_path / "words.tar", "w") as tar:
        add(tar, "a.txt", b"word")
    with pytest.raises(ValueError, match="no videos in 1 tar files"):
        source(tmp_path / "words.tar")
    found = everything(f"{shards}/{{000..006}}.tar")
    lost = [str(item)[-7:] for item in found if item.problem == "no such file"]
    assert lost == ["005.tar", "006.tar"] and len(found) == COUNT + 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ValueError, match="index of tar files can't be written: .*set XDG_CACHE_HOME"
    ):
        source(shards)


def test_a_shard_that_shrinks_while_it_is_used_is_reported(shards, tmp_path):
    copy = shutil.copy(shards / "000.tar", tmp_path / "a.tar")
    found = source(copy)
    with open(copy, "r+b") as file:
        file.truncate(999)
    with pytest.raises(video.UnreadableVideo, match="a.tar ends at byte 999, but this part"):
        for item in found.items:
            found.clip(item, np.random.default_rng(0))
    assert isinstance(found.items[0], container.Slice)


def test_many_shards_take_little_memory_and_time(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(20):
            add(tar, f"{i:05}.mp4")
    os.mkdir(tmp_path / "many")
    for i in range(2000):
        os.link(tmp_path / "a.tar", tmp_path / "many" / f"{i:05}.tar")
    where = f"{tmp_path}/many/{{00000..01999}}.tar"
    source(where)
    begin = time.process_time()
    found = source(where)
    assert time.process_time() - begin < 2
    assert len(found.items) + len(source(where, "test").items) == 40_000
    assert found.items[len(found.items) - 1].name == "00019.mp4"
    numbers = np.random.default_rng(0).integers(len(found.items), size=300)
    names = [str(found.items[number]) for number in numbers]
    copy = pickle.dumps(found)  # what a worker process gets
    assert len(copy) < 300 * 2000
    assert [str(pickle.loads(copy).items[number]) for number in numbers] == names


def test_ingest_reads_shards_and_reports_what_is_damaged(films, tmp_path):
    root, reasons = damaged(films, tmp_path)
    plan = dict(size=SIZE, resize=SIZE, frames=12, least=F, quality=0)
    options = dict(workers=2, show=False)
    ingest.ingest(plans.Plan(f"webdataset:{root}", **plan), str(tmp_path / "a"), **options)
    ingest.ingest(plans.Plan(f"videos:{films}", **plan), str(tmp_path / "b"), **options)
    rows = [json.loads(line) for line in (tmp_path / "a" / "report.jsonl").read_text().splitlines()]
    bad = {row["path"].removeprefix(f"{root}/"): row["reason"] for row in rows if not row["ok"]}
    assert bad.keys() == reasons.keys()
    assert all(text in bad[name] for name, text in reasons.items())
    assert len({row["identity"] for row in rows}) == len(rows)

    def videos(out):
        found = {}
        for split in "train", "test":
            one = catalog.source(config(f"records:{tmp_path / out}"), "videos", split)
            for item in one.items:
                for part in one.parts(item, 999):
                    found.setdefault(os.path.basename(part["episode"]), []).append(part["video"])
        return {name: np.concatenate(parts) for name, parts in found.items()}

    here, there = videos("b"), videos("a")
    shared = here.keys() & there.keys()
    assert len(shared) == 11
    for name in shared:
        np.testing.assert_array_equal(there[name][: len(here[name])], here[name])


def test_braces_are_those_of_a_shell():
    texts = "x-{000..102}.tar", "{a,b}/{1..3}.tar", "{8..11}{,x}", "a{b}c", "{09..11}"
    for text in texts:
        shell = subprocess.run(["bash", "-c", f"echo {text}"], capture_output=True, text=True)
        assert list(webdataset.expand(text)) == shell.stdout.split()

"""Whose fault an error is: the system's, which passes, the file's, or that of the code."""

import collections
import errno
import http.server
import io
import threading
import zipfile

import fsspec
import numpy as np
import pytest
import test_data
from drawing import every, numbers, write
from test_data import SIZE, config, same, take

from lawm_jax.data import catalog, container, decode, errors, frames, pipeline, video
from lawm_jax.ingest import plans, readers

VIEW = frames.View(SIZE, SIZE)
labelled = test_data.labelled
pytestmark = pytest.mark.usefixtures("no_pause")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    for i in range(6):
        write(root / f"{i}.mp4", every(20, 10), first=20 * i)
    return root


@pytest.fixture
def server(films):
    """Serves `films`; `answers`, a function of a request's number, may give another status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            server.count += 1
            status, path = server.answers(server.count), films / self.path[1:]
            status = status or (200 if path.is_file() else 404)
            data = path.read_bytes() if status == 200 else b"no"
            size = len(data)
            if status == 200 and "Range" in self.headers:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                data, status = data[int(first) : int(last) + 1 if last else None], 206
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.count, server.answers = 0, lambda number: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_http_error_is_named_and_one_of_the_server_is_tried_again(server, films):
    pytest.importorskip("aiohttp")
    http_server, url = server
    with pytest.raises(video.UnreadableVideo, match="404") as caught:
        video.read_clip(f"{url}/none.mp4", 0.0, 4, 4.0, VIEW)
    assert not errors.transient(caught.value)
    wanted = video.read_clip(str(films / "1.mp4"), 0.3, 4, 4.0, VIEW)["video"]
    for status in 500, 503, 429:
        http_server.answers = lambda number, status=status: status if number % 3 else None
        got = video.read_clip(f"{url}/1.mp4", 0.3, 4, 4.0, VIEW)["video"]
        np.testing.assert_array_equal(got, wanted)
    http_server.answers = lambda number: 503
    with pytest.raises(video.UnreadableVideo) as caught:
        video.read_clip(f"{url}/1.mp4", 0.3, 4, 4.0, VIEW)
    assert errors.transient(caught.value)
    http_server.answers = lambda number: 403
    with pytest.raises(video.UnreadableVideo, match="403") as caught:
        video.read_clip(f"{url}/1.mp4", 0.3, 4, 4.0, VIEW)
    assert not errors.transient(caught.value)


@pytest.fixture
def cloud(films):
    system = fsspec.filesystem("memory")
    system.put(str(films), "/films", recursive=True)
    yield "memory://films"
    system.rm("/films", recursive=True)


FAILURES = (
    TimeoutError("503, try again"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    OSError(errno.EIO, "disk"),
    OSError(errno.EMFILE, "files"),
    type("ClientError", (Exception,), {"status": 503})("busy"),
    fsspec.exceptions.FSTimeoutError("slow"),
)


def test_one_failed_read_in_a_few_changes_no_batch_and_leaves_no_file_out(
    cloud, monkeypatch, tmp_path
):
    wanted = take(pipeline.clips(config(cloud, holdout=0.0)), 8)
    system, counts = fsspec.get_filesystem_class("memory"), collections.Counter()
    opened, read = system._open, io.BytesIO.read

    class Flaky:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, size=-1):
            fail("read")
            return read(self.file, size)

    def fail(what):
        counts[what] += 1
        if counts[what] % 4 == 0:
            raise FAILURES[counts[what] // 4 % len(FAILURES)]

    def flaky(*args, **options):
        fail("open")
        return Flaky(opened(*args, **options))

    monkeypatch.setattr(system, "_open", flaky)
    log = tmp_path / "skipped.jsonl"
    stream = pipeline.clips(config(cloud, holdout=0.0), skipped=str(log))
    same(take(stream, 3), wanted[:3])
    state = stream.get_state()
    resumed = pipeline.clips(config(cloud, holdout=0.0), skipped=str(log))
    resumed.set_state(state)
    same(take(resumed, 5), wanted[3:])
    assert not log.exists() and min(counts.values()) > 12


def test_what_the_system_never_gives_is_no_short_film(cloud, monkeypatch):
    system = fsspec.get_filesystem_class("memory")
    opened, allowed = system._open, 0

    def broken(*args, **options):
        file = opened(*args, **options)
        data = file.getvalue()

        class Broken(io.BytesIO):
            def read(self, size=-1):
                if self.tell() + size > allowed:
                    raise OSError(errno.EIO, "disk")
                return super().read(size)

        return Broken(data)

    monkeypatch.setattr(system, "_open", broken)
    source = video.Videos("videos", [f"{cloud}/0.mp4"], 4, 4.0, VIEW)
    for allowed in 0, 900, 2000:  # noqa: B007
        for read in source.fixed, lambda item: source.parts(item, 64):
            with pytest.raises(video.UnreadableVideo, match="disk") as caught:
                list(read(source.items[0]))
            assert errors.transient(caught.value)
    assert not errors.transient(video.UnreadableVideo("a", "damaged"))
    lasting = FileNotFoundError(errno.ENOENT, "none"), ValueError("x"), OSError("truncated")
    assert not any(errors.transient(error) for error in lasting)


def test_a_local_file_that_the_disk_does_not_give_is_told_from_a_damaged_one(films, monkeypatch):
    import av

    path = str(films / "0.mp4")
    error = av.error.OSError(errno.EIO, "Input/output error")
    assert not errors.transient(container.unreadable(path, error))

    def disk(*args, **options):
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr("builtins.open", disk)
    error = av.error.OSError(errno.EIO, "Input/output error")
    found = container.unreadable(path, error)
    found.__cause__ = error
    assert errors.transient(found)


def test_films_in_archives_and_behind_caches_are_found_and_read(films, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.write(films / f"{i}.mp4", f"deep/{i}.mp4")
        archive.writestr("deep/notes.txt", "")
    fsspec.filesystem("memory").pipe("/a.zip", (tmp_path / "a.zip").read_bytes())
    for outer in f"{tmp_path}/a.zip", "memory://a.zip", f"file://{tmp_path}/a.zip":
        for inner in "", "deep", "deep/*.mp4", "**/*.mp4":
            found = video.find_videos(f"zip://{inner}::{outer}")
            assert found == [f"zip://deep/{i}.mp4::{outer}" for i in range(3)]
        for i, url in enumerate(found):
            clip = video.read_clip(url, 0.0, 4, 4.0, VIEW)["video"]
            assert numbers(clip) == [20 * i + n for n in (0, 2, 5, 7)]
            assert len(video.find_videos(url)) == 1
    train, test = video.split_videos(f"zip://::{tmp_path}/a.zip", 0.3)
    assert len(train + test) == 3 and train and test
    with pytest.raises(video.UnreadableVideo) as caught:
        video.read_clip(f"zip://none.mp4::{tmp_path}/a.zip", 0.0, 4, 4.0, VIEW)
    assert "none.mp4" in caught.value.reason and not errors.transient(caught.value)
    with pytest.raises(ValueError, match="none.zip"):
        video.find_videos(f"zip://*.mp4::{tmp_path}/none.zip")


BUGS = TypeError, AttributeError, NameError, AssertionError, ImportError


@pytest.mark.parametrize("kind", BUGS)
@pytest.mark.parametrize("place", ["decode", "scale", "open", "remote"])
def test_a_bug_in_the_reader_of_videos_ends_the_run(films, cloud, monkeypatch, kind, place):
    stream = pipeline.clips(config(films if place != "remote" else cloud, holdout=0.0))

    def bug(*args, **options):
        raise kind("a bug")

    owner, name = {
        "decode": (decode, "plan_packets"),
        "scale": (frames.Scaler, "frame"),
        "open": (container.Film, "packets"),
        "remote": (frames.Scaler, "frame"),
    }[place]
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises(kind, match="a bug"):
        take(stream, 1)


def test_a_bug_in_the_reader_of_episodes_ends_the_run(labelled, monkeypatch):
    stream = pipeline.clips(config(labelled=labelled))

    def bug(*args, **options):
        raise TypeError("a bug")

    monkeypatch.setattr(frames.Scaler, "frame", bug)
    with pytest.raises(TypeError, match="a bug"):
        take(stream, 1)


def test_a_bug_or_an_outage_ends_ingest_and_a_damaged_file_does_not(films):
    plan = plans.Plan(str(films), fps=10.0, size=SIZE, resize=SIZE, frames=8, least=4)

    class Source:
        def __init__(self, error):
            self.error = error

        def parts(self, item, most, least):
            raise self.error
            yield

    def run(error):
        row = {"records": 0, "dropped": 0, "reason": None}
        assert not list(readers.readable_parts(plan, Source(error), "a", row))
        return row["reason"]

    assert run(frames.UnreadableVideo("a", "damaged")) == "damaged"
    outage = frames.UnreadableVideo("a", "slow")
    outage.__cause__ = TimeoutError()
    for error in [outage, *(kind("a bug") for kind in BUGS)]:
        with pytest.raises(type(error)):
            run(error)


def test_an_option_that_does_not_exist_is_an_error_and_a_bug_behind_it_is_not_taken_for_one(
    labelled, monkeypatch, tmp_path
):
    settings = config(labelled=labelled)
    settings.data.sources["nav"] += "?rat=3"
    with pytest.raises(ValueError, match="rat"):
        catalog.source(settings, "nav")
    settings.data.sources["nav"] = f"mini:{tmp_path}/nowhere?what"
    with pytest.raises(ValueError, match="expected a folder, or FOLDER.OPTION=VALUE"):
        catalog.source(settings, "nav")
    (tmp_path / "what? now").symlink_to(labelled)
    folder = f"{tmp_path}/what? now"
    assert catalog.parse("x", f"mini:{folder}") == ("mini", folder, {})
    options = {"rate": "3", "a": "b"}
    assert catalog.parse("x", f"mini:{folder}?rate=3&a=b") == ("mini", folder, options)

    def bug(name, where, split, data, view, rate=""):
        raise TypeError("f() got an unexpected keyword argument 'metadata_errors'")

    monkeypatch.setitem(catalog.KINDS, "mini", bug)
    settings.data.sources["nav"] = f"mini:{labelled}/nav?rate=3"
    with pytest.raises(TypeError, match="metadata_errors"):
        catalog.source(settings, "nav")

"""Real files that others wrote, in ../shared/real: each frame against a decoder of PyAV alone."""

import itertools
import pathlib

import av
import numpy as np
import pytest
from test_data import F

from lawm_jax.data import frames, video

REAL = pathlib.Path(__file__).resolve().parents[2] / "shared" / "real"
FILES = [
    "codecs/av1_video.mkv",
    "codecs/bt709_full_range.mp4",
    "codecs/h264_10bits.mp4",
    "codecs/h265_10bits.mp4",
    "codecs/h265_video.mp4",
    "codecs/nasa_13013.mp4",
    "droid_views/exterior_image_1_left.mp4",
    "droid_views/exterior_image_2_left.mp4",
    "droid_views/wrist_image_left.mp4",
]
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"there is no {REAL}")
VIEW = frames.View(32, 32)
MOST = 150  # frames of a file to compare


@pytest.fixture(scope="module", params=FILES)
def film(request):
    """Returns a path, and times and scaled pictures of the frames that PyAV alone decodes."""
    path, times, pictures = str(REAL / request.param), [], []
    scaler = frames.Scaler(VIEW)
    with av.open(path) as file:
        stream = file.streams.best("video")
        for frame in itertools.islice(file.decode(stream), MOST):
            times.append(float(frame.pts * stream.time_base))
            pictures.append(scaler.frame(frame, float(stream.sample_aspect_ratio or 1)))
    return path, np.array(times) - times[0], np.stack(pictures)


@pytest.mark.parametrize("fps", [4.0, 7.5, 30.0])
def test_every_frame_of_a_real_file_is_the_one_on_screen(film, fps):
    path, times, pictures = film
    random = np.random.default_rng(0)
    latest = times[-1] - (F - 1) / fps
    starts = [0.0, *random.uniform(0, latest, 4), *times[random.integers(0, len(times) // 2, 3)]]
    for start in (start for start in starts if start <= latest):
        clip = video.read_clip(path, float(start), F, fps, VIEW)["video"]
        at = start + np.arange(F) / fps
        wanted = np.maximum(np.searchsorted(times, at + 1e-3, "right") - 1, 0)
        np.testing.assert_array_equal(clip, pictures[wanted])


def test_all_of_a_real_file_comes_in_order(film):
    path, times, pictures = film
    rate = float(1 / np.median(np.diff(times)))
    shown = []
    for part in video.Videos("videos", [path], F, rate, VIEW).parts(path, 64):
        shown += list(part["video"])
        if len(shown) >= len(times):
            break
    at = np.arange(min(len(shown), len(times))) / rate
    at = at[at <= times[-1]]
    wanted = np.searchsorted(times, at + 1e-3, "right") - 1
    np.testing.assert_array_equal(np.stack(shown[: len(at)]), pictures[wanted])
    assert len(at) >= len(times) - 1


def test_raw_droid_views_of_one_episode_have_their_419_frames():
    for name in FILES[-3:]:
        with av.open(str(REAL / name)) as file:
            assert sum(1 for _ in file.decode(video=0)) == 419
        source = video.Videos("videos", [str(REAL / name)], F, 15.0, VIEW)
        assert sum(len(part["video"]) for part in source.parts(str(REAL / name), 128)) == 419

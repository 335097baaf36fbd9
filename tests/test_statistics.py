"""Tests of the statistics of labels; expected values come from numpy, math.fsum and by hand."""

import contextlib
import functools
import glob
import math
import os

import ml_collections
import numpy as np
import pytest

from lawm_jax.data import catalog, episodes, frames, mini, statistics, video

NAMES = ("mean", "std", "min", "max", "q01", "q99")


def source(items, fps=4.0, **fields):
    """Makes a labelled source of items {name: dict of labels}; None stands for a damaged one."""

    @contextlib.contextmanager
    def opened(name):
        labels = items[name]
        if labels is None:
            raise episodes.UnreadableVideo(name, "damaged")

        def arrays(indices, view):
            assert view is None  # or video would have to be decoded
            cut = {"actions": indices[:-1], "state": indices}
            return {key: rows[cut.get(key, indices)] for key, rows in labels.items()}

        yield episodes.Episode(max(len(rows) for rows in labels.values()), arrays)

    fields = {"frames": 4, "stride": 1, "view": frames.View(32, 32)} | fields
    return episodes.Episodes("test", tuple(items), opened, **fields)


def labelled(state):
    """Makes an episode whose actions are the changes of its states."""
    state = np.asarray(state, np.float64)
    return {"actions": np.concatenate([np.diff(state, axis=0), state[:1]]), "state": state}


def walks(count=9, width=3, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 40, count)
    return {
        f"{i}": labelled(random.normal(size=(n, width)).cumsum(0)) for i, n in enumerate(lengths)
    }


def exact(column):
    """Returns mean and standard deviation of a column, rounded once."""
    values = [float(value) for value in column]
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def config(fps=4.0):
    augment = dict(crop=False, area=(0.3, 1.0), ratio=(0.75, 1.35), flip=0.0, jitter=0.0, cut=0.0)
    data = dict(videos="", frames=8, fps=fps, resize=64, size=64, holdout=0.1, augment=augment)
    sources = {"panda": "mini:panda", "nav": "mini:nav"}
    return ml_collections.ConfigDict({"seed": 0, "data": {**data, "sources": sources}})


@pytest.mark.parametrize("name", ["panda", "nav"])
def test_statistics_of_the_embedded_sets_are_numpys_and_no_video_is_decoded(name, monkeypatch):
    monkeypatch.setattr(video, "read_clip", None)
    paths = sorted(glob.glob(os.path.join(mini.FOLDER, name, "train", "*.npz")))
    got = statistics.measure(catalog.source(config(), name), 4.0)
    assert (got["items"], got["skipped"], got["fps"], got["stride"]) == (len(paths), 0, 4.0, 1)
    for key in "actions", "state":
        rows = np.concatenate([np.load(path)[key] for path in paths]).astype(np.float64)
        assert got[key]["count"] == len(rows) and got[key]["quantiles"] == "exact"
        wanted = [rows.mean(0), rows.std(0), rows.min(0), rows.max(0)]
        wanted += list(np.quantile(rows, (0.01, 0.99), axis=0))
        for statistic, values in zip(NAMES, wanted, strict=True):
            np.testing.assert_allclose(got[key][statistic], values, rtol=1e-9, atol=1e-12)


def test_labels_of_the_embedded_sets_can_be_read_alone():
    opened = catalog.source(config(), "nav", "test")
    with opened.open(opened.items[0]) as episode:
        both = episode.arrays(np.arange(3, 11), opened.view)
        alone = episode.arrays(np.arange(3, 11), None)
    assert alone.keys() == {"actions", "state"} == both.keys() - {"video"}
    for key, rows in alone.items():
        np.testing.assert_array_equal(rows, both[key])


def test_all_steps_between_the_frames_of_a_stride_are_measured():
    items = {"a": labelled(np.arange(11)[:, None]), "b": labelled(100 + np.arange(4)[:, None])}
    got = statistics.measure(source(items, stride=3), 2.0)
    assert got["state"]["count"] == 4 + 2 and got["actions"]["count"] == 3 + 1
    np.testing.assert_allclose(got["state"]["mean"], [(0 + 3 + 6 + 9 + 100 + 103) / 6])
    assert (got["stride"], got["fps"]) == (3, 2.0)


def test_mean_and_deviation_are_exact_for_huge_offsets_and_nearly_constant_dimensions():
    random = np.random.default_rng(0)
    steps = random.normal(size=(4000, 5))
    rows = np.stack(
        [
            1e8 + 1e-3 * steps[:, 0],
            -1e6 + steps[:, 1],
            0.1 + 1e-9 * steps[:, 2],
            np.full(4000, 0.1),
            1e-12 * steps[:, 4],
        ],
        1,
    )
    items = {f"{i}": {"state": part} for i, part in enumerate(np.split(rows, [3, 4, 1000, 3999]))}
    got = statistics.measure(source(items), 4.0)["state"]
    for dimension in 0, 1, 2, 4:
        mean, std = exact(rows[:, dimension])
        assert got["mean"][dimension] == pytest.approx(mean, rel=1e-14, abs=1e-25)
        assert got["std"][dimension] == pytest.approx(std, rel=1e-6)
    assert got["std"][3] == 0.0 and got["mean"][3] == pytest.approx(0.1, rel=1e-15)
    naive = np.sqrt(np.maximum((rows[:, 0] ** 2).mean() - rows[:, 0].mean() ** 2, 0))
    assert abs(naive / exact(rows[:, 0])[1] - 1) > 0.1  # what a running sum of squares would give


def test_the_order_of_the_items_does_not_matter():
    items = walks(30)
    random = np.random.default_rng(1)
    first = statistics.measure(source(items), 4.0)
    for _ in range(3):
        names = list(items)
        random.shuffle(names)
        other = statistics.measure(source({name: items[name] for name in names}), 4.0)
        for key in "actions", "state":
            for name in NAMES:
                np.testing.assert_allclose(other[key][name], first[key][name], rtol=1e-12)
        assert other["fingerprint"] != first["fingerprint"]  # but another order is another source


def test_items_that_cannot_be_read_or_hold_nonsense_are_counted():
    items = walks(4)
    wanted = statistics.measure(source(items), 4.0)
    items |= {"damaged": None, "nan": labelled([[1.0, 2, 3], [np.nan, 0, 0]])}
    items |= {"wide": labelled(np.zeros((5, 4))), "short": labelled(np.zeros((1, 3)))}
    got = statistics.measure(source(items), 4.0)
    assert (got["items"], got["skipped"]) == (8, 3)
    assert got["actions"] == wanted["actions"]
    assert got["state"]["count"] == wanted["state"]["count"] + 1
    short = statistics.measure(source({"short": labelled(np.zeros((1, 3)))}), 4.0)
    assert "actions" not in short and short["state"]["count"] == 1
    with pytest.raises(ValueError, match="test: expected labels, got none: damaged: damaged"):
        statistics.measure(source({"damaged": None}), 4.0)
    with pytest.raises(ValueError, match="test: expected labels, got neither actions nor state"):
        statistics.measure(source({"a": {"other": np.zeros((4, 2))}}), 4.0)


def test_a_source_without_labels_is_refused(videos):
    opened = video.Videos("films", tuple(video.find_videos(videos)), 4, 4.0, frames.View(32, 32))
    with pytest.raises(ValueError, match="source: expected a labeled source, got Videos"):
        statistics.measure(opened, 4.0)


def test_what_is_written_is_read_again_and_never_overwritten_silently(tmp_path):
    opened = source(walks())
    measured = statistics.measure(opened, 4.0)
    path = statistics.write(tmp_path, measured)
    assert path == str(tmp_path / "statistics.json") and os.listdir(tmp_path) == ["statistics.json"]
    assert statistics.read(tmp_path) == statistics.read(tmp_path, opened, 4.0) == measured
    with pytest.raises(ValueError, match="statistics.json: already exists"):
        statistics.write(tmp_path, measured)
    with pytest.raises(TypeError):
        statistics.write(tmp_path, {"fps": object()}, replace=True)
    assert statistics.read(tmp_path) == measured and os.listdir(tmp_path) == ["statistics.json"]
    statistics.write(tmp_path, measured | {"fps": 2.0}, replace=True)
    assert statistics.read(tmp_path)["fps"] == 2.0


def test_missing_and_damaged_statistics_come_with_the_command_that_makes_them(tmp_path):
    command = "python -m lawm_jax.ingest --source droid:/data/droid --statistics --fps 4"
    read = functools.partial(statistics.read, tmp_path, fps=4.0, spec="droid:/data/droid")
    with pytest.raises(ValueError) as caught:
        read()
    assert str(caught.value) == f"{tmp_path}/statistics.json: not found; create it with: {command}"
    with pytest.raises(ValueError, match=f"--source KIND:{tmp_path} --statistics$"):
        statistics.read(tmp_path)
    for text in "{", "[1]", '{"items": 3}':
        (tmp_path / "statistics.json").write_text(text)
        with pytest.raises(ValueError, match="damaged .*; delete it and run: python") as caught:
            read()
        assert str(caught.value).endswith(command)
    (tmp_path / "statistics.json").write_text("[1]")
    with pytest.raises(ValueError, match="statistics.json: damaged"):
        statistics.read(tmp_path)


def test_statistics_of_other_data_are_refused_with_what_changed(tmp_path):
    items = walks(6)
    opened = source(items)
    statistics.write(tmp_path, statistics.measure(opened, 4.0))
    more = source(items | walks(7))
    other = source({f"{name}b": labels for name, labels in items.items()})
    for changed, fps, text in [
        (opened, 2.0, "fps was 4.0 and is 2.0"),
        (source(items, stride=2), 4.0, "stride was 1 and is 2"),
        (more, 4.0, "items was 6 and is 7, fingerprint was"),
        (other, 4.0, "measured on different data: fingerprint was"),
    ]:
        with pytest.raises(ValueError, match=text) as caught:
            statistics.read(tmp_path, changed, fps)
        assert f"--source KIND:{tmp_path} --statistics --fps {fps:g}" in str(caught.value)


def test_data_that_moved_is_the_same_data(tmp_path):
    def at(folder, names=("a/1.h5", "a/2.h5", "b/1.h5")):
        labels = [labelled(np.arange(4.0)[:, None])] * len(names)
        return source(dict(zip([f"{folder}/{name}" for name in names], labels, strict=True)))

    statistics.write(tmp_path, statistics.measure(at("/disk/data"), 4.0))
    statistics.read(tmp_path, at("/elsewhere/copy"), 4.0)
    with pytest.raises(ValueError, match="fingerprint"):
        statistics.read(tmp_path, at("/disk/data", ("a/1.h5", "a/2.h5", "b/2.h5")), 4.0)

"""What of other data is evaluated, where some run may have been trained on it."""

import json

import pytest

from lawm_jax import evaluate


def run(folder, videos="", mixture=(), holdout=0.05, **parts):
    """Writes the config of a run with a checkpoint."""
    (folder / "checkpoints" / "4").mkdir(parents=True)
    sources = dict(a="lerobot:/a", b="lerobot:/b")
    data = dict(videos=videos, sources=sources, mixture=dict(mixture), holdout=holdout)
    (folder / "config.json").write_text(json.dumps({"data": data} | parts))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    """A model of a, a bound of videos, one of labelled actions of b, and a controller."""
    model = run(tmp_path, mixture=[("a", 1.0), ("b", 0.0)], latent={"kind": "noisy"})
    bounds = tmp_path / "bounds"
    films = run(bounds / "none", videos="/films/*", holdout=0.1, latent={"kind": "none"})
    latent = {"kind": "labelled"}
    labels = run(bounds / "labelled", mixture=[("b", 1.0)], holdout=0.02, latent=latent)
    kind = {"kind": "state"}
    run(tmp_path / "controller", videos="droid:/d", holdout=0.2, latent={}, controller=kind)
    return model, [films, labels]


@pytest.mark.parametrize(
    "given,share,who",
    [
        ({"new": "lerobot:/new"}, 1.0, ""),
        ({"new": "lerobot:/a"}, 0.05, "model"),
        ({"a": "lerobot:/new"}, 1.0, ""),  # for lack of labels, another source of that name
        ({"new": "/films/*"}, 0.1, "none"),
        ({"new": "lerobot:/b"}, 0.02, "labelled"),  # the model's weight of it is 0
        ({"b": "lerobot:/moved"}, 0.02, "labelled"),
        ({"new": "droid:/d"}, 0.2, "controller"),
        ({"new": "lerobot:/a", "b": "lerobot:/b"}, 0.02, "labelled"),
    ],
)
def test_what_a_run_was_trained_on_is_never_evaluated_and_that_is_said(
    runs, capsys, given, share, who
):
    assert evaluate._unseen(given, *runs) == share
    said = capsys.readouterr().out
    assert ("was trained on it" in said) == (share < 1) and (who == "model" or who in said)

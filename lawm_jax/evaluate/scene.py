"""Scene: whether latent actions identify the scene, which they should not encode.

Nearest centroids, fitted to the first half of each episode's clips, classify the episode of each
latent of the second half. The state's principal components, as many as a latent has dimensions, and
the real actions are classified, too: a latent that copies the state is as good as these components,
and a policy may act differently in each episode. Noisy latents are the posterior means.

If several data sources are evaluated, centroids of half of the episodes of each also classify the
data source of the latents of the other episodes.

Source: ours; distances are those of diagonal linear discriminant analysis, as in Tibshirani et al.
2002, "Diagnosis of multiple cancer types by shrunken centroids", without the shrinkage.
"""

import numpy as np
from scipy.spatial.distance import cdist

from lawm_jax.evaluate import metrics, probing, row_names, verdicts
from lawm_jax.evaluate.tables import Column, Table, real

COLUMNS = (
    Column("episode accuracy", "episode", 3, "lower"),
    Column("chance", "chance", 3),
    Column("relative to the state", "share", 2, "lower"),
    Column("source accuracy", "source", 3),
    Column("chance", "source_chance", 3),
)


def run(source):
    """Tests the latents of the models of a `context.Source`, its states and its real actions."""
    s, u, episodes = source.clips.s, source.clips.actions, source.clips.episodes
    first = first_half(episodes)
    rows = {name: {"name": name} for name in source.latents}
    if not rows:
        return None
    width = source.z(source.latents[0]).shape[2]
    if first is None:
        print(f"{source.name}: skipping the episodes of scene: fewer than 3 have at least 2 clips")
    else:
        inputs = {name: source.z(name) for name in rows}
        states = probing.take(s, np.flatnonzero(first))
        inputs[row_names.STATE] = probing.principal(states, width)(s)
        if u is not None:
            inputs[row_names.REAL_ACTIONS] = probing.align(u, s.shape[1])
        for name, row in tell_episodes(inputs, episodes, row_names.STATE).items():
            rows[name] = rows.get(name, {"name": name}) | row
    if len(source.peers) > 1:
        for name, row in _tell_sources(source.peers, list(source.latents), width).items():
            rows[name] = rows.get(name, {"name": name}) | row
    rows = list(rows.values())
    return rows if any(len(row) > 1 for row in rows) else None


def _tell_sources(peers, names, width):
    """Applies `tell_sources` to the models that all sources have, and to the states."""
    episodes = [source.clips.episodes for source in peers]
    halves = [probing.second_fold(x) if len(set(x)) > 1 else None for x in episodes]
    if any(half is None for half in halves):
        return {}
    names = [name for name in names if all(name in source.latents for source in peers)]
    inputs = {name: [source.z(name) for source in peers] for name in names}
    states = [source.clips.s for source in peers]
    training = [probing.take(s, np.flatnonzero(~x)) for s, x in zip(states, halves, strict=True)]
    project = probing.principal(np.concatenate(training), width)
    inputs[row_names.STATE] = [project(s) for s in states]
    return {name: tell_sources(x, episodes) for name, x in inputs.items()}


def first_half(episodes):
    """Marks the first half of each episode's clips, rounded up.

    Args:
      episodes: [n] str, the episode of each clip, in order of time within an episode.

    Returns:
      [n] bool, False for the only clip of an episode; None if fewer than 3 episodes have 2 clips.
    """
    names, index, counts = np.unique(episodes, return_inverse=True, return_counts=True)
    if (counts > 1).sum() < 3:
        return None
    place = np.empty(len(index), int)
    for i in range(len(names)):
        place[index == i] = np.arange(counts[i])
    return (place < (counts[index] + 1) // 2) & (counts[index] > 1)


def tell_episodes(inputs, episodes, reference):
    """Measures how well nearest centroids classify the episode, on the second half of its clips.

    Args:
      inputs: name -> [n, T-1, k], such as latents.
      episodes: [n] str, as in `first_half`; those of a single clip are left out.
      reference: name of the input that `share` compares with.

    Returns:
      name -> dict of
        episode: interval of the share of steps whose episode is named correctly, a mean over
          episodes, which all have the same weight.
        chance: 1 / number of episodes, what any input that is independent of the episode scores.
        share: interval of (episode - chance) / (the reference's - chance), None where the
          reference's interval does not lie above chance.

    Raises:
      ValueError: fewer than 3 episodes have at least 2 clips.
    """
    first = first_half(episodes)
    if first is None:
        raise ValueError("episodes: expected at least 3 with at least 2 clips, got fewer")
    names, index = np.unique(episodes, return_inverse=True)
    trained = np.unique(index[first])
    test = np.isin(index, trained) & ~first
    chance, correct = 1 / len(trained), {}
    for name, x in inputs.items():
        named = nearest_centroid(x[first], index[first], x[test])
        right = (named == index[test, None]).mean(1)
        count = np.bincount(index[test])[trained]
        correct[name] = np.bincount(index[test], right)[trained] / count
    base = metrics.interval(correct[reference])
    rows = {}
    for name, x in correct.items():
        row = {"episode": metrics.interval(x), "chance": chance, "share": None}
        if verdicts.above(base, chance):
            row["share"] = metrics.ratio(x - chance, correct[reference] - chance)
        rows[name] = row
    return rows


def tell_sources(inputs, episodes):
    """Measures how well nearest centroids classify the data source, by cross-validation.

    Args:
      inputs: one [n, T-1, k] per data source, such as latents.
      episodes: one [n] str per data source, at least 2 episodes in each.

    Returns:
      dict of `source`, the interval over episodes of the share of steps whose source is named
      correctly, where all sources have the same weight, and `source_chance`, 1 / their number.
    """
    K = len(inputs)
    label = np.repeat(np.arange(K), [len(x) for x in inputs])
    second = np.concatenate([probing.second_fold(x) for x in episodes])
    x, right = np.concatenate(inputs), np.empty(len(label))
    for test in (second, ~second):
        named = nearest_centroid(x[~test], label[~test], x[test])
        right[test] = (named == label[test, None]).mean(1)
    weight = 1 / np.bincount(label)[label]
    groups = [f"{i} {name}" for i, names in enumerate(episodes) for name in names]
    return {"source": metrics.ratio(right * weight, weight, groups), "source_chance": 1 / K}


def nearest_centroid(x, label, test):
    """Classifies each step of test clips by the nearest centroid.

    Distances are in units of the deviation of each dimension within the labels.

    Args:
      x: [n, steps, k], training clips.
      label: [n] int.
      test: [m, steps, k].

    Returns:
      [m, steps] int.
    """
    k = x.shape[2]
    flat = x.reshape(-1, k).astype(np.float64)
    labels, index = np.unique(np.repeat(label, x.shape[1]), return_inverse=True)
    sums = np.stack([np.bincount(index, column) for column in flat.T], 1)
    centers = sums / np.bincount(index)[:, None]
    scale = (flat - centers[index]).std(0)
    scale = np.maximum(scale, 1e-6 * scale.max()) if scale.any() else np.ones(k)
    distance = cdist(test.reshape(-1, k) / scale, centers / scale)
    return labels[distance.argmin(1)].reshape(test.shape[:2])


def tables(rows):
    """Returns the rows of `run` as a list of Table."""
    return [Table("scene identification by nearest centroid", COLUMNS, rows)]


def judge(rows, name):
    """Judges whether latents identify the episode less than half as well as the state does."""
    rows = verdicts.by_name(rows)
    row = rows.get(name)
    named, share = verdicts.measured(row, "episode"), verdicts.measured(row, "share")
    chance = row.get("chance") if row else None
    if named is None or not real(chance):
        return []
    text = f"episode accuracy: latents {verdicts.short(named, 2)}, chance {chance:.2f}"
    for other, words in ((row_names.REAL_ACTIONS, "real actions"), (row_names.STATE, "state")):
        if x := verdicts.measured(rows.get(other), "episode"):
            text += f", {words} {x['mean']:.2f}"
    if share is None:
        answer, text = verdicts.UNDECIDED, f"{text}; the state does not identify it either"
    else:
        answer, text = _answer(share), f"{text}; relative to the state: {verdicts.short(share, 2)}"
    return [verdicts.Verdict("no scene", answer, text, "not measured")]


def _answer(share):
    if verdicts.below(share, 0.5):
        return verdicts.PARTLY if verdicts.above(share, 0) else verdicts.HOLDS
    return verdicts.FAILS if verdicts.above(share, 0.5) else verdicts.UNDECIDED

"""Reads clips that a file lists by episode and start, as other authors' evaluations do."""

import csv
import hashlib
import io
import json
import os
import re

from lawm_jax.data import catalog, episodes, frames, metadata, paths
from lawm_jax.evaluate import clips


def read(path):
    """Reads a list of clips.

    Args:
      path: a CSV file with the columns `episode` and `start`, or a JSON file with a list of objects
        of these fields; others are ignored. An episode is an item of the data source, the name of
        its file with or without the suffix, or its path below the data's folder; `start` is the
        recorded step, from 0, at which plans start.

    Returns:
      A list of (episode, start).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has another form, or no rows.
    """
    path = paths.expand(path)
    if not paths.exists(path) or paths.is_dir(path):
        raise FileNotFoundError(f"{path}: expected a list of clips, got no such file")
    text = paths.at(path).read_bytes().decode("utf-8-sig", "replace")
    try:
        table = csv.DictReader(io.StringIO(text, newline=""))
        content = json.loads(text) if path.lower().endswith(".json") else list(table)
        content = metadata.check(path, "content", content, "a list")
    except (json.JSONDecodeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path}: expected a list of clips, got: {error}") from error
    rows = []
    for number, row in enumerate(content, 1):
        row = row if isinstance(row, dict) else {}
        if not {"episode", "start"} <= row.keys():
            got = ", ".join(str(key) for key in row) or "none"
            raise ValueError(f"{path}: row {number}: expected episode and start, got {got}")
        episode, start = row["episode"], str(row["start"]).strip()
        if episode in (None, "") or not re.fullmatch(r"\d+(\.0*)?", start, re.ASCII):
            raise ValueError(
                f"{path}: row {number}: expected an episode and its start, a whole number from 0, "
                f"got {episode!r} and {row['start']!r}"
            )
        rows.append((str(episode), int(start.split(".")[0])))
    if not rows:
        raise ValueError(f"{path}: expected rows with episode and start, got none")
    return rows


def label(path):
    """Returns a name of a list for file names: that of the file, and a hash of its content."""
    content = paths.at(paths.expand(path)).read_bytes()
    return f"{os.path.basename(path)}-{hashlib.sha256(content).hexdigest()[:6]}"


def load(config, name, encode, rows, before=0):
    """Loads the listed clips of a data source as `Clips`, of its training and its test split.

    Clips that cannot be read are reported and left out.

    Args:
      config: a run's config, whose `data.frames` is the number of frames of a clip.
      name: name of the data source.
      encode: as in `clips.held_out`.
      rows: from `read`.
      before: number of frames of a clip before its start.

    Raises:
      ValueError: the source has no such episode or several, an episode does not have the clip, the
        source is not one of recorded episodes, or no clip can be read.
    """
    sources = {split: catalog.source(config, name, split) for split in ("test", "train")}
    if not isinstance(sources["test"], episodes.Episodes):
        raise ValueError(f"{name}: expected a source of recorded episodes, got videos")
    index = {}
    for split, source in sources.items():
        for item in source.items:
            for key in _names(source, item):
                item_id = episodes.identity(source, item), str(item)  # if single, in both splits
                index.setdefault(key, {})[item_id] = split, item
    loaded, trained = [], 0
    for episode, start in rows:
        matches = index.get(episode, {})
        if len(matches) != 1:
            several = [f"{where} ({split})" for (where, _), (split, _) in matches.items()][:4]
            raise ValueError(
                f"episodes_from: expected the name of one episode of {name}, such as "
                f"{sources['test'].items[0]}, got {episode!r}, the name of {len(matches) or 'none'}"
                + (f": {', '.join(several)}" if matches else "")
            )
        ((split, item),) = matches.values()
        try:
            loaded.append(_clip(sources[split], item, start, before))
            trained += split == "train"
        except frames.UnreadableVideo as error:
            print(f"skipped a listed clip: {error}")
    if not loaded:
        raise ValueError(f"episodes_from: expected clips of {name} that can be read, got none")
    if trained:
        print(f"{trained} of {len(loaded)} listed clips are in the training split of {name}")
    return clips.collect(loaded, encode)


def _names(source, item):
    """Returns the names of an episode: its identity, and the ends of its path."""
    parts = str(item).rstrip("/").split("/")
    ends = {"/".join(parts[i:]) for i in range(len(parts))}
    return {episodes.identity(source, item), *ends, *(os.path.splitext(x)[0] for x in ends)}


def _clip(source, item, start, before):
    """Reads the clip of one item whose frame `before` is the step `start`."""
    first = start - before * source.stride
    with source.open(item) as episode:
        last = episode.length - 1 - (source.frames - 1 - before) * source.stride
        if first < 0 or start > last:
            raise ValueError(
                f"episodes_from: expected a start of {item} from {before * source.stride} to "
                f"{last}, got {start}"
            )
        clip = source.read(item, episode, first, source.view)
    if "actions" not in clip:
        raise ValueError(f"{source.name}: expected clips with actions, got {sorted(clip)}")
    return clip

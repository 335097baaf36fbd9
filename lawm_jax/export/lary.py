"""The form `lary`: the files that LARYBench's regression reads, with --action-mode relative.

    OUT/data/{train,val}_la_SOURCE_STRIDE_MODEL.csv                     a row per latent action
    OUT/latent_actions/SOURCE/{train,val}/MODEL/latent_action_N.npz     `tokens` and `indices`
    OUT/regression_relative/SOURCE/actions/{train,val}/action_N.npy     float32 [7]
    OUT/regression_relative/SOURCE/relative_action_stats_SOURCE.json    mean and std of training

A time step is one image of LARYBench's image pairs, and STRIDE its number of frames.

Source: Nie et al. 2026, "LARY"; github.com/meituan-longcat/LARYBench at commit 2092d20,
`ActionExpertDataset` of regression/main.py, `extract_latent_actions` of lary/extract.py,
lary/path_resolver.py and utils/prepare_relative_actions.py.
"""

import csv
import json
import os

import numpy as np

from lawm_jax.data import paths
from lawm_jax.evaluate import probing

VALUES = 7  # number of actions that the regression predicts for an unknown data set
SPLITS = {"train": "train", "test": "val"}
# Data sets of LARYBench, which it normalizes by their own statistics and looks for elsewhere.
KNOWN = "calvin", "vlabench", "vlabench_15", "vlabench_30", "agibotbeta", "robocoin"


def write(folder, name, split, batches, model, stride):
    """Writes the latent actions of one source and split.

    Args:
      folder, name, split, batches: as in `arrays.write`.
      model: name of the model, for the names of files.
      stride: frames per time step.

    Returns:
      A dict for export.json: `clips`, `rows`, `csv` (its path in OUT) and `values`, the number of
      real actions, or None if there are none. Zeros follow to make them 7.

    Raises:
      ValueError: LARYBench has a data set of that name, or actions have more than 7 values.
    """
    from sklearn.preprocessing import StandardScaler  # slow import

    if name.lower() in KNOWN:
        raise ValueError(
            f"{name}: expected a name other than those of LARYBench's data sets, "
            f"{', '.join(KNOWN)}; rename it with --data, got {name}"
        )
    split = SPLITS[split]
    table = os.path.join("data", f"{split}_la_{name}_{stride}_{model}.csv")
    targets = os.path.join("regression_relative", name.lower())  # as LARYBench spells it
    for inside in ("data", latent_folder := os.path.join(name, split, model)):
        top = "" if inside == "data" else "latent_actions"
        os.makedirs(os.path.join(folder, top, inside), exist_ok=True)
    clips, rows, values, moments = 0, 0, None, StandardScaler()
    with open(os.path.join(folder, table), "w", newline="", encoding="utf-8") as file:
        out = None
        for batch in batches:
            z, u = batch["latents"], _seven(name, batch)
            if out is None:
                values = None if u is None else batch["actions"].shape[-1]
                out = csv.writer(file)
                columns = ["dataset", "episode", "start", "step", "la_path"]
                out.writerow(columns + ["action"] * (u is not None))
            for clip, step in np.ndindex(z.shape[:2]):
                path = os.path.join(latent_folder, f"latent_action_{rows:08d}.npz")
                codes = batch["codes"][clip, step, None] if "codes" in batch else np.array([])
                _save(folder, ["latent_actions", path], tokens=z[clip, step, None], indices=codes)
                row = [name, batch["episode"][clip], batch["start"][clip], step, path]
                if u is not None:
                    row.append(os.path.join("actions", split, f"action_{rows:08d}.npy"))
                    _save(folder, [targets, row[-1]], u[clip, step])
                out.writerow(row)
                rows += 1
            if u is not None:
                moments.partial_fit(u.reshape(-1, VALUES).astype(np.float64))
            clips += len(z)
    if split == "train" and values is not None:
        std = np.where(moments.var_ < 1e-12, 1.0, np.sqrt(moments.var_))  # as in LARYBench
        about = {"action_mode": "relative", "dataset": name, "definition": "change over a step"}
        about |= {"count": int(moments.n_samples_seen_), "mean": moments.mean_.tolist()}
        about["std"] = std.tolist()
        path = os.path.join(folder, targets, f"relative_action_stats_{name.lower()}.json")
        paths.write(path, json.dumps(about, indent=1))
    return {"clips": clips, "rows": rows, "csv": table, "values": values}


def _seven(name, batch):
    """Returns the real actions over each time step, [n, T-1, 7] float32, or None."""
    if "actions" not in batch:
        return None
    u = probing.align(batch["actions"], batch["latents"].shape[1] + 1)
    if u.shape[-1] > VALUES:
        raise ValueError(
            f"{name}: expected actions of at most {VALUES} values, which LARYBench's regression "
            f"predicts, got {u.shape[-1]}; use --to arrays"
        )
    return np.pad(u, [(0, 0), (0, 0), (0, VALUES - u.shape[-1])]).astype(np.float32)


def _save(folder, inside, array=None, **arrays):
    """Writes one array as .npy, or several as compressed .npz."""
    path = os.path.join(folder, *inside)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if arrays:
        np.savez_compressed(path, **arrays)
    else:
        np.save(path, array, allow_pickle=False)

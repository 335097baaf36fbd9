"""Generates lawm_mini, the embedded data set: a Panda arm, and navigation of Freedoom levels.

    pip install lawm_jax[sim]
    python -m lawm_jax.envs.policies --out lawm_jax/assets/lawm_mini

Action labels are the displacements achieved between consecutive states, not the policy's commands.
"""

import argparse
import itertools
import json
import pathlib
import time

import numpy as np

from lawm_jax.data import mp4, poses
from lawm_jax.envs.simulators import RATE, LeftLevel, Navigation, Panda

FRAMES = 64
PANDA_SEEDS = {"train": 0, "test": 10_000}  # seeds of the first episodes


def reach(panda, rng):
    """Yields actions toward random goals, positions or objects to push, at varying speeds."""
    goal, low = None, False
    while True:
        position = panda.state[:3]
        if goal is None or np.linalg.norm(goal - position) < 0.03 or rng.random() < 0.15:
            goal = rng.uniform(panda.LOW, panda.HIGH)
            if low and rng.random() < 0.5:
                goal[2] = 0.05  # sweep along the table
            low = rng.random() < 0.35
            if low:
                target = panda.data.xpos[panda.model.body(f"object{rng.integers(4)}").id]
                goal = np.clip([*target[:2], 0.05], panda.LOW, panda.HIGH)
            speed, grip = rng.uniform(0.03, 0.11), float(rng.random() < 0.4)
        offset = goal - position
        offset *= min(1, speed / max(np.linalg.norm(offset), 1e-6))
        yield [*(offset + rng.normal(0, 0.01, 3)), grip]


def roam(walker, rng):
    """Yields actions of a walk that avoids walls: piecewise constant velocity and turn rate."""
    target, turn, retreat, place = None, 0.0, 0, None
    while True:
        if target is None or rng.random() < 0.12:
            side = rng.choice([-1, 0, 0, 1]) * rng.uniform(0.05, 0.25)
            target = np.array([rng.uniform(0.05, 0.6), side, rng.normal(0, 0.06)])
        ahead = walker.depth[80:180]  # rows near the horizon; lower rows show the floor
        center, left, right = ahead[:, 90:230], ahead[:, :107].mean(), ahead[:, 213:].mean()
        room = np.quantile(center, 0.1)
        before, place = place, walker.state[:2]
        if before is not None and np.linalg.norm(place - before) < 0.03:
            retreat = 4  # stuck on something below these rows
        if room > 3.2 and not retreat:
            turn, action = 0.0, target
        else:  # turn to the open side and keep the direction until the way is clear
            turn = turn or (1.0 if left > right else -1.0)
            speed = -0.25 if retreat else target[0] * np.clip((room - 0.8) / 2.4, 0, 1)
            action, retreat = np.array([speed, turn * 0.1, turn * 0.13]), max(0, retreat - 1)
        yield action + rng.normal(0, [0.03, 0.02, 0.012])


def record(simulator, policy, frames):
    """Runs a policy; returns video uint8 [F, H, W, 3] and states float32 [F, k]."""
    video, states = [simulator.render().copy()], [simulator.state]
    for action in itertools.islice(policy, frames - 1):
        simulator.step(action)
        video.append(simulator.render().copy())
        states.append(simulator.state)
    return np.stack(video), np.stack(states)


def displacements(states):
    """Computes the displacement achieved by each step, float32 [F-1, 3], from states [F, k].

    For Panda states (k = 4): dx, dy, dz in the base frame. For navigation states (k = 3): dx
    forward, dy left, dyaw left, in the body frame before the step, see `poses.body_frame`.
    """
    if states.shape[1] == 3:
        return poses.body_frame(states[:, :2], states[:, 2])
    return np.diff(states[:, :3], axis=0).astype(np.float32)


def panda_episode(seed, frames=FRAMES):
    """Simulates a Panda episode; returns its video, states and identity (the seed)."""
    panda = Panda(seed)
    video, states = record(panda, reach(panda, np.random.default_rng([seed, 1])), frames)
    panda.close()
    return video, states, {"seed": seed}


def nav_episode(level, seed, frames=FRAMES, attempts=6):
    """Simulates a walk; returns its video, states and identity, or None if no attempt is good.

    A good walk moves in most steps, covers some distance, is never dark and uses no teleporter.
    """
    walker, rng = Navigation(level, seed), np.random.default_rng([seed, 2])
    policy, best = roam(walker, rng), None
    try:
        steps = 2 + 80 * seed + int(rng.integers(80))  # seeds start at different places
        record(walker, policy, steps)
        for _ in range(attempts):
            video, states = record(walker, policy, frames)
            moved = np.linalg.norm(displacements(states)[:, :2], axis=1)
            steady = (moved > 0.02).mean() > 0.9 and moved.max() < 1
            wide = np.ptp(states[:, :2], axis=0).max() > 5
            if steady and wide and video.mean(axis=(1, 2, 3)).min() > 40:
                best = video, states, {"level": level, "seed": seed}
                break
    except LeftLevel:
        pass
    walker.close()
    return best


def panda_episodes(split):
    """Yields episodes with seeds 0, 1, ... for train and 10000, 10001, ... for test."""
    return map(panda_episode, itertools.count(PANDA_SEEDS[split]))


def nav_levels(split):
    """Lists the levels of a split; every fourth level is for test."""
    return [name for i, name in enumerate(Navigation.LEVELS) if (i % 4 == 2) == (split == "test")]


def nav_episodes(split):
    """Yields walks through all levels with one seed, then with the next."""
    walks = (nav_episode(level, seed) for seed in range(20) for level in nav_levels(split))
    return filter(None, walks)


def write_video(path, video, crf):
    """Writes video uint8 [F, H, W, 3] as H.264 with a keyframe every 16 frames."""
    options = {"crf": str(crf), "preset": "veryslow", "g": "16", "bf": "0", "threads": "1"}
    mp4.write(path, video, RATE, options)


# For each set: its episodes by split, their number, the H.264 CRF (lower: better and larger).
SETS = {
    "panda": (panda_episodes, {"train": 128, "test": 32}, 22),
    "nav": (nav_episodes, {"train": 120, "test": 40}, 29),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="output folder")
    parser.add_argument("--only", choices=SETS, help="use only this simulator")
    parser.add_argument(
        "--episodes",
        type=int,
        help="number of training episodes, and maximum number of test episodes",
    )
    flags = parser.parse_args()
    path, manifest = flags.out / "manifest.json", []
    if flags.only and path.exists():  # keep the other sets
        manifest = [e for e in json.loads(path.read_text()) if not e["path"].startswith(flags.only)]
    for name, (episodes, counts, crf) in SETS.items():
        for split, count in counts.items():
            if flags.only not in (None, name):
                continue
            (flags.out / name / split).mkdir(parents=True, exist_ok=True)
            begin, size = time.perf_counter(), 0
            if flags.episodes:  # test episodes stay the same
                count = flags.episodes if split == "train" else min(count, flags.episodes)
            for i, (video, states, identity) in enumerate(itertools.islice(episodes(split), count)):
                episode = pathlib.Path(name, split, f"{i:04}.mp4")
                write_video(flags.out / episode, video, crf)
                labels = {"actions": displacements(states), "state": states, **identity}
                np.savez_compressed((flags.out / episode).with_suffix(".npz"), **labels)
                entry = {"path": episode.as_posix(), "split": split, "frames": len(video)}
                manifest.append(entry | identity)
                size += (flags.out / episode).stat().st_size
            spent = time.perf_counter() - begin
            report = f"{name}/{split}: {count} episodes, {size / 1e6:.1f} MB, {spent:.0f} s"
            print(report, flush=True)
    lines = ",\n".join(json.dumps(entry) for entry in manifest)
    path.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

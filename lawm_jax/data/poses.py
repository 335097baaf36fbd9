"""Turns recorded poses into the actions between them."""

import numpy as np


def droid_actions(poses, gripper):
    """Returns what a robot's hand achieved from step to step, in the frame of its base.

    Args:
      poses: [F, 6], position x, y, z (metres) and Euler angles (radians) of turns about the fixed
        axes x, y and z, in this order: scipy's "xyz".
      gripper: [F], how far the gripper is closed.

    Returns:
      float32 [F-1, 7]: change of position, Euler angles of the turn R_next R^T that leads from one
      pose to the next, change of the gripper.

    Raises:
      ValueError: the shapes differ from these, or a value isn't finite.

    Source: `poses_to_diffs` of github.com/facebookresearch/vjepa2, app/vjepa_droid/droid.py.
    """
    poses, gripper = np.asarray(poses, np.float64), np.asarray(gripper, np.float64)
    if poses.shape != (len(gripper), 6) or gripper.ndim != 1:
        raise ValueError(
            f"poses, gripper: expected [F, 6] and [F], got {poses.shape} and {gripper.shape}"
        )
    if not (np.isfinite(poses).all() and np.isfinite(gripper).all()):
        raise ValueError("poses, gripper: expected finite numbers")
    turns = _matrices(poses[:, 3:])
    turns = turns[1:] @ turns[:-1].swapaxes(1, 2)
    changes = np.diff(poses[:, :3], axis=0), _angles(turns), np.diff(gripper)[:, None]
    return np.concatenate(changes, 1).astype(np.float32)


def body_frame(position, yaw):
    """Returns how a vehicle moved from step to step, in its own frame before the step.

    Args:
      position: [F, 2], x and y, metres.
      yaw: [F], radians from x towards y.

    Returns:
      float32 [F-1, 3]: forward and to the left (metres), turn to the left in (-pi, pi] (radians).

    Raises:
      ValueError: the shapes differ from these, or a value isn't finite.
    """
    position, yaw = np.asarray(position, np.float64), np.asarray(yaw, np.float64)
    if position.shape != (len(yaw), 2) or yaw.ndim != 1:
        raise ValueError(
            f"position, yaw: expected [F, 2] and [F], got {position.shape} and {yaw.shape}"
        )
    if not (np.isfinite(position).all() and np.isfinite(yaw).all()):
        raise ValueError("position, yaw: expected finite numbers")
    (dx, dy), turn = np.diff(position, axis=0).T, np.diff(yaw)
    cos, sin = np.cos(yaw[:-1]), np.sin(yaw[:-1])
    turn -= 2 * np.pi * np.ceil((turn - np.pi) / (2 * np.pi))
    return np.stack([cos * dx + sin * dy, cos * dy - sin * dx, turn], 1).astype(np.float32)


def follow(actions):
    """Returns where a vehicle gets to by moves in its own frame: undoes `body_frame`.

    Args:
      actions: [..., T, 3], forward, to the left (metres), turn to the left (radians).

    Returns:
      float64 [..., T, 3], the pose after each step in the frame of the first one: x, y (metres),
      yaw (radians, not wrapped).

    Raises:
      ValueError: the last axis isn't 3.
    """
    actions = np.asarray(actions, np.float64)
    if actions.ndim < 2 or actions.shape[-1] != 3:
        raise ValueError(f"actions: expected [..., T, 3], got {actions.shape}")
    forward, left, turn = np.moveaxis(actions, -1, 0)
    after = turn.cumsum(-1)
    yaw = after - turn  # before the step
    x = np.cos(yaw) * forward - np.sin(yaw) * left
    y = np.sin(yaw) * forward + np.cos(yaw) * left
    return np.stack([x.cumsum(-1), y.cumsum(-1), after], -1)


def _matrices(angles):
    """Returns the rotations [F, 3, 3] of turns about the fixed axes x, y and z by angles [F, 3]."""
    (a, b, c), (s, t, u) = np.cos(angles.T), np.sin(angles.T)
    rows = [
        [c * b, c * t * s - u * a, c * t * a + u * s],
        [u * b, u * t * s + c * a, u * t * a - c * s],
        [-t, b * s, b * a],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _angles(matrices):
    """Inverts `_matrices`; the angle about y lies in [-pi/2, pi/2].

    Where that is +-pi/2 only the sum or difference of the other two is determined. Whichever x then
    is, even if it is noise, z is taken from what is left of the rotation.
    """
    m = np.moveaxis(matrices, 0, -1)
    x = np.arctan2(m[2, 1], m[2, 2])
    y = np.arctan2(-m[2, 0], np.hypot(m[2, 1], m[2, 2]))
    cos, sin = np.cos(x), np.sin(x)
    z = np.arctan2(sin * m[0, 2] - cos * m[0, 1], cos * m[1, 1] - sin * m[1, 2])
    return np.stack([x, y, z], 1)

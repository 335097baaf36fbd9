"""Converts recorded poses to the actions between them."""

import numpy as np


def droid_actions(poses, gripper):
    """Returns the achieved change of a robot hand's pose from step to step, in the base frame.

    Args:
      poses: [F, 6], position x, y, z (meters) and Euler angles (radians) about the fixed axes x, y
        and z, in this order: scipy's "xyz".
      gripper: [F], how far the gripper is closed.

    Returns:
      float32 [F-1, 7]: change of position, Euler angles of the rotation R_next R^T from one pose to
      the next, and change of the gripper.

    Raises:
      ValueError: a shape differs, or a value isn't finite.

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
    changes = np.diff(poses[:, :3], axis=0), euler_angles(turns), np.diff(gripper)[:, None]
    return np.concatenate(changes, 1).astype(np.float32)


def body_frame(position, yaw):
    """Returns the motion of a vehicle from step to step, in its own frame before the step.

    Args:
      position: [F, 2], x and y, meters.
      yaw: [F], radians from x toward y.

    Returns:
      float32 [F-1, 3]: forward and to the left (meters), turn to the left in (-pi, pi] (radians).

    Raises:
      ValueError: a shape differs, or a value isn't finite.
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
    """Integrates a vehicle's motions in its own frame into poses; inverts `body_frame`.

    Args:
      actions: [..., T, 3], forward, to the left (meters), turn to the left (radians).

    Returns:
      float64 [..., T, 3], the pose after each step in the frame of the first pose: x, y (meters),
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
    """Returns rotation matrices [F, 3, 3] from angles [F, 3] about the fixed axes x, y and z."""
    (a, b, c), (s, t, u) = np.cos(angles.T), np.sin(angles.T)
    rows = [
        [c * b, c * t * s - u * a, c * t * a + u * s],
        [u * b, u * t * s + c * a, u * t * a - c * s],
        [-t, b * s, b * a],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def euler_angles(matrices):
    """Inverts `_matrices`; the angle about y lies in [-pi/2, pi/2].

    If that angle is +-pi/2, only the sum or difference of the other two is determined. Then the
    angle about x is arbitrary, and the angle about z is computed from the rotation that remains.
    """
    m = np.moveaxis(matrices, 0, -1)
    x = np.arctan2(m[2, 1], m[2, 2])
    y = np.arctan2(-m[2, 0], np.hypot(m[2, 1], m[2, 2]))
    cos, sin = np.cos(x), np.sin(x)
    z = np.arctan2(sin * m[0, 2] - cos * m[0, 1], cos * m[1, 1] - sin * m[1, 2])
    return np.stack([x, y, z], 1)

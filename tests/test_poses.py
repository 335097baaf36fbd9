"""Tests of lawm_jax.data.poses against scipy's rotations."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lawm_jax.data import poses

LOCK = np.pi / 2


def recorded(angles, seed=0):
    """Returns random positions with the given angles, and a random gripper."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.normal(size=(len(angles), 3)), angles], 1), random.random(
        len(angles)
    )


def by_scipy(path, gripper):
    """Returns V-JEPA 2's actions, with scipy's rotations."""
    turns = [Rotation.from_euler("xyz", pose[3:]).as_matrix() for pose in path]
    turns = [after @ before.T for before, after in zip(turns[:-1], turns[1:], strict=True)]
    angles = np.stack([Rotation.from_matrix(turn).as_euler("xyz") for turn in turns])
    return np.concatenate([np.diff(path[:, :3], axis=0), angles, np.diff(gripper)[:, None]], 1)


def test_actions_are_those_of_v_jepa_2_for_any_rotations():
    angles = np.random.default_rng(0).uniform(-np.pi, np.pi, (2000, 3))
    path, gripper = recorded(angles)
    actions = poses.droid_actions(path, gripper)
    assert actions.dtype == np.float32 and actions.shape == (1999, 7)
    np.testing.assert_allclose(actions, by_scipy(path, gripper), rtol=1e-6, atol=1e-6)


def test_small_turns_keep_all_digits_of_float32_also_where_an_angle_wraps():
    random = np.random.default_rng(1)
    for first in [0, 0, 0], [np.pi, 0, 0], [3.1, -0.2, -np.pi], [-np.pi, LOCK - 1e-3, 2]:
        angles = first + np.cumsum(random.normal(size=(500, 3)) * 1e-3, 0)
        angles = (angles + np.pi) % (2 * np.pi) - np.pi
        path, gripper = recorded(angles)
        actions = poses.droid_actions(path, gripper)
        np.testing.assert_allclose(actions, by_scipy(path, gripper), rtol=1e-6, atol=1e-12)
        assert np.abs(actions[:, 3:6]).max() < 0.1


@pytest.mark.parametrize("off", [0.0, 1e-15, 1e-12, 1e-9, 1e-7, 1e-4])
@pytest.mark.parametrize("sign", [-1, 1])
def test_at_and_near_gimbal_lock_actions_give_the_turn_itself(off, sign):
    random = np.random.default_rng(2)
    angles = np.zeros((400, 3))  # every turn is from no rotation to a locked one, or back
    angles[1::2] = random.uniform(-np.pi, np.pi, (200, 3))
    angles[1::2, 1] = sign * (LOCK - off)
    actions = poses.droid_actions(*recorded(angles))
    assert np.abs(actions[:, 4]).max() <= np.float32(LOCK)
    turns = Rotation.from_euler("xyz", actions[::2, 3:6].astype(np.float64))
    wanted = Rotation.from_euler("xyz", angles[1::2])
    assert (turns * wanted.inv()).magnitude().max() < 1e-6
    # The angles themselves, not rounded to float32, are as exact as the matrix is.
    exact = Rotation.from_euler("xyz", poses.euler_angles(wanted.as_matrix()))
    assert (exact * wanted.inv()).magnitude().max() < 1e-14


def test_a_body_frame_has_forward_left_and_turn():
    position = np.array([[0, 0], [1, 0], [1, 2], [0, 2], [0, 2], [1, 3]])
    yaw = np.pi * np.array([0, 0.5, 1, 1.5, -0.25, 0.75])
    root = np.sqrt(2)
    wanted = [[1, 0, LOCK], [2, 0, LOCK], [1, 0, LOCK], [0, 0, np.pi / 4], [0, root, np.pi]]
    moved = poses.body_frame(position, yaw)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, wanted, atol=1e-6)


def test_a_body_frame_agrees_with_complex_numbers_and_wraps_any_turn():
    random = np.random.default_rng(3)
    position, yaw = random.normal(size=(1000, 2)), random.uniform(-50, 50, 1000)
    way, heading = position @ [1, 1j], np.exp(1j * yaw)
    moved, turn = np.diff(way) / heading[:-1], np.angle(heading[1:] / heading[:-1])
    wanted = np.stack([moved.real, moved.imag, turn], 1)
    np.testing.assert_allclose(poses.body_frame(position, yaw), wanted, rtol=1e-5, atol=1e-6)
    turns = np.array([np.pi, -np.pi, 3 * np.pi, 1e-8, -1e-8])
    yaw = np.stack([np.zeros(5), turns], 1)
    got = [poses.body_frame(np.zeros((2, 2)), one)[0, 2] for one in yaw]
    np.testing.assert_array_equal(got, np.float32([np.pi, np.pi, np.pi, 1e-8, -1e-8]))


def test_one_pose_has_no_action():
    assert poses.droid_actions(np.zeros((1, 6)), np.zeros(1)).shape == (0, 7)
    assert poses.body_frame(np.zeros((1, 2)), np.zeros(1)).shape == (0, 3)


@pytest.mark.parametrize("function, width", [(poses.droid_actions, 6), (poses.body_frame, 2)])
def test_wrong_shapes_and_numbers_that_are_not_finite_are_refused(function, width):
    with pytest.raises(ValueError, match=rf"expected \[F, {width}\] and \[F\], got"):
        function(np.zeros((4, width)), np.zeros(3))
    with pytest.raises(ValueError, match=rf"expected \[F, {width}\] and \[F\], got"):
        function(np.zeros((4, width)), np.zeros((4, 1)))
    poor = np.zeros((4, width))
    poor[2, 1] = np.nan
    with pytest.raises(ValueError, match="expected finite numbers"):
        function(poor, np.zeros(4))
    with pytest.raises(ValueError, match="expected finite numbers"):
        function(np.zeros((4, width)), np.array([0, 0, np.inf, 0]))

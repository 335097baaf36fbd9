"""Simulates a Panda arm above a table (MuJoCo) and a walker in a Freedoom level (ViZDoom).

Both have step(action), render(), state and close(). An action is the target displacement over the
next quarter of a second, in the units of lawm_mini's labels. Needs `pip install lawm_jax[sim]`.
"""

import ctypes
import importlib
import os
import pathlib
import sys

import numpy as np

RATE = 4  # frames per second
ROBOT = pathlib.Path(__file__).resolve().parents[1] / "assets" / "franka_panda" / "panda.urdf"


class LeftLevel(RuntimeError):
    """Signals that a walker left a level through its exit, after which nothing can be rendered."""


def _need(*modules):
    """Imports modules of the `sim` extra; raises ImportError with instructions if missing."""
    try:
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        raise ImportError(f"{error}; the simulators require: pip install lawm_jax[sim]") from error


def _mujoco():
    """Imports MuJoCo for headless rendering; raises ImportError with instructions if that fails."""
    if sys.platform == "linux":  # read when mujoco is first imported
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        (mujoco,) = _need("mujoco")
    except (AttributeError, ctypes.ArgumentError) as error:
        # PyOpenGL fails like this if a library is missing, and does not say which.
        opengl = sys.modules.get("OpenGL.platform")
        if opengl is None or None not in (opengl.PLATFORM.EGL, opengl.PLATFORM.GL):
            raise
        needs = "libEGL and libOpenGL; on Debian and Ubuntu: apt install libegl1 libopengl0"
        raise ImportError(f"rendering with MuJoCo requires {needs}") from error
    return mujoco


def _robot(mujoco):
    """Returns the specification of a Franka Panda with position servos."""
    # Renders the links' collision meshes: at 128 px they are hard to distinguish from the visual
    # meshes, at a tenth of the cost.
    spec = mujoco.MjSpec.from_file(str(ROBOT))
    for body in spec.bodies[1:]:
        body.gravcomp = 1
        dark = body.name in {"panda_hand", "panda_leftfinger", "panda_rightfinger"}
        for geom in body.geoms:
            geom.contype, geom.conaffinity = 2, 0  # collides with objects and table, not itself
            geom.rgba = [0.16, 0.16, 0.19, 1] if dark else [0.92, 0.92, 0.95, 1]
    joint_type, servo = mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtGain.mjGAIN_FIXED
    for joint in spec.joints:
        joint.armature = 0.1
        joint.damping = [2.0, 0, 0] if np.ndim(joint.damping) else 2.0  # polynomial since v3.17
        actuator = spec.add_actuator(name=joint.name, target=joint.name, trntype=joint_type)
        actuator.gaintype, actuator.biastype = servo, mujoco.mjtBias.mjBIAS_AFFINE
        stiff, damp = (200, 10) if "finger" in joint.name else (8000, 320)
        actuator.gainprm[0], actuator.biasprm[1], actuator.biasprm[2] = stiff, -stiff, -damp
    return spec


class Panda:
    """Simulates a Franka Panda above a table with four loose objects, seen by one fixed camera.

    The gripper always points down. `seed` determines colors, objects and the start pose. A process
    may have only one renderer, since a second one silently draws garbage: call close() first.

    Attributes:
      LOW, HIGH: [3] m, corners of the box that bounds the commanded fingertip positions.
      state: [4] float32, fingertips x, y, z (m, base frame: x ahead of the robot, z up) and
        gripper opening (m).
    """

    LOW, HIGH = np.array([0.34, -0.24, 0.04]), np.array([0.70, 0.24, 0.40])
    CAMERA, TARGET, FOVY = (1.30, 0.78, 0.80), (0.48, -0.01, 0.22), 35.0

    def __init__(self, seed, size=128):
        self.mujoco = _mujoco()
        rng = np.random.default_rng(seed)
        self.model = self._scene(rng, size)
        self.data, self.scratch = self.mujoco.MjData(self.model), self.mujoco.MjData(self.model)
        joints = [self.model.joint(f"panda_joint{i}") for i in range(1, 8)]
        fingers = [self.model.joint(f"panda_finger_joint{i}") for i in (1, 2)]
        self.q = np.array([joint.qposadr[0] for joint in joints])
        self.dof = np.array([joint.dofadr[0] for joint in joints])
        self.fingers = np.array([joint.qposadr[0] for joint in fingers])
        self.tip = self.model.body("panda_grasptarget").id
        self.grip = 0.04
        self.data.qpos[self.q] = self.data.ctrl[:7] = [0, -0.5, 0, -2.2, 0, 1.8, 0.785]
        self.data.qpos[self.fingers] = self.data.ctrl[7:] = self.grip
        self.mujoco.mj_kinematics(self.model, self.data)
        self.down = self.data.xmat[self.tip].reshape(3, 3).copy()
        start = rng.uniform(self.LOW + [0, 0, 0.12], self.HIGH)
        self.data.qpos[self.q] = self.data.ctrl[:7] = self._joints(start)
        for _ in range(100):  # until the objects are at rest
            self.mujoco.mj_step(self.model, self.data)
        self.mujoco.mj_forward(self.model, self.data)
        self.renderer = self.mujoco.Renderer(self.model, size, size)

    def _scene(self, rng, size):
        """Builds table, room, light, camera and objects around the robot."""
        mj, kind, texture = self.mujoco, self.mujoco.mjtGeom, self.mujoco.mjtTexture
        spec = _robot(mj)
        spec.option.timestep, spec.option.integrator = 0.005, mj.mjtIntegrator.mjINT_IMPLICITFAST
        spec.visual.quality.offsamples, spec.visual.quality.shadowsize = 0, 1024
        spec.visual.global_.offwidth = spec.visual.global_.offheight = size
        spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.45] * 3, [0.3] * 3
        spec.visual.map.znear = 0.05
        world = spec.worldbody

        for name, low, high, repeat in (("floor", 0.2, 0.8, 5), ("wall", 0.5, 1.0, 2)):
            colors = {"rgb1": rng.uniform(low, high, 3), "rgb2": rng.uniform(low, high, 3)}
            pattern = {"type": texture.mjTEXTURE_2D, "builtin": mj.mjtBuiltin.mjBUILTIN_CHECKER}
            spec.add_texture(name=name, width=64, height=64, **pattern, **colors)
            material = spec.add_material(name=name, texrepeat=[repeat, repeat])
            material.textures[mj.mjtTextureRole.mjTEXROLE_RGB] = name
        solid, wall = {"contype": 1, "conaffinity": 3}, {"material": "wall"}
        room, table = {"type": kind.mjGEOM_BOX}, [*rng.uniform(0.35, 0.85, 3), 1]
        world.add_geom(type=kind.mjGEOM_PLANE, size=[3, 3, 0.1], pos=[0, 0, -0.4], material="floor")
        world.add_geom(size=[0.1, 3, 2], pos=[-1.2, 0, 1.6], **room, **wall)
        world.add_geom(size=[3, 0.1, 2], pos=[0, -1.5, 1.6], **room, **wall)
        world.add_geom(size=[0.5, 0.7, 0.2], pos=[0.45, 0, -0.2], rgba=table, **room, **solid)
        # The shadow on the table distinguishes height from depth.
        sun = {"type": mj.mjtLightType.mjLIGHT_DIRECTIONAL, "pos": [0.2, 0.3, 2]}
        world.add_light(dir=[0.15, -0.2, -1], diffuse=[0.6] * 3, **sun)

        shapes = kind.mjGEOM_BOX, kind.mjGEOM_CYLINDER, kind.mjGEOM_ELLIPSOID, kind.mjGEOM_BOX
        for i, shape in enumerate(shapes):
            place = rng.uniform([0.36, -0.24], [0.66, 0.24])
            color = rng.uniform([0.7, 0, 0], [1, 1, 0.25])  # saturated, unlike arm and room
            color = [*rng.permutation(color), 1]
            body = world.add_body(name=f"object{i}", pos=[*place, 0.05])
            body.add_freejoint()
            touch = {"mass": 0.05, "condim": 6, "friction": [1, 0.02, 0.01], **solid}
            body.add_geom(type=shape, size=rng.uniform(0.025, 0.04, 3), rgba=color, **touch)
        world.add_body(name="target", pos=self.TARGET)
        look = {"mode": mj.mjtCamLight.mjCAMLIGHT_TARGETBODY, "targetbody": "target"}
        world.add_camera(name="view", pos=self.CAMERA, fovy=self.FOVY, **look)
        return spec.compile()

    def _joints(self, position):
        """Returns the joint angles [7] that bring the fingertips to `position` [3] (m)."""
        mj, model, data = self.mujoco, self.model, self.scratch
        data.qpos[:] = self.data.qpos
        data.qpos[self.q] = self.data.ctrl[:7]
        jacobian = np.zeros((2, 3, model.nv))
        for _ in range(30):  # damped least squares
            mj.mj_kinematics(model, data)
            mj.mj_comPos(model, data)
            mj.mj_jacBody(model, data, jacobian[0], jacobian[1], self.tip)
            turn = self.down @ data.xmat[self.tip].reshape(3, 3).T
            turn = (turn - turn.T)[[2, 0, 1], [1, 2, 0]] / 2
            error = np.concatenate([position - data.xpos[self.tip], turn])
            if np.abs(error).max() < 1e-4:
                break
            J = jacobian.reshape(6, -1)[:, self.dof]
            data.qpos[self.q] += J.T @ np.linalg.solve(J @ J.T + 1e-4 * np.eye(6), error)
        return data.qpos[self.q].copy()

    @property
    def state(self):
        opening = self.data.qpos[self.fingers].sum()
        return np.float32([*self.data.xpos[self.tip], opening])

    def step(self, action):
        """Moves for 1/4 s.

        Args:
          action: [3] displacement dx, dy, dz (m, base frame), or [4] with the gripper last, from
            0 (open) to 1 (closed).
        """
        if len(action) == 4:
            self.grip = 0.04 * (1 - float(action[3]))
        goal = self.data.xpos[self.tip] + np.asarray(action[:3], float)
        goal = np.clip(goal, self.LOW, self.HIGH)
        start, joints = self.data.ctrl[:7].copy(), self._joints(goal)
        steps = round(1 / RATE / self.model.opt.timestep)
        for i in range(steps):
            # The ramp ends early: the arm is at rest in each frame, so the state needs no velocity.
            self.data.ctrl[:7] = start + (joints - start) * min(1, (i + 1) / (0.6 * steps))
            self.data.ctrl[7:] = self.grip
            self.mujoco.mj_step(self.model, self.data)
        self.mujoco.mj_forward(self.model, self.data)  # update positions for the new joint angles

    def render(self):
        """Renders the camera's view, uint8 [H, W, 3]."""
        self.renderer.update_scene(self.data, camera="view")
        self.renderer.scene.flags[self.mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return self.renderer.render()

    def pixels(self, points):
        """Projects points [..., 3] (m, base frame) to pixels [..., 2], x right and y down."""
        right, up, back = self.data.cam_xmat[0].reshape(3, 3).T
        away, size = np.asarray(points) - self.data.cam_xpos[0], self.renderer.width
        scale = size / 2 / np.tan(np.deg2rad(self.FOVY) / 2) / (away @ -back)
        return size / 2 + np.stack([scale * (away @ right), -scale * (away @ up)], axis=-1)

    def close(self):
        self.renderer.close()


class Navigation:
    """Simulates a walker at eye height in a level of the Freedoom games, without monsters.

    Attributes:
      LEVELS: names of all levels, "freedoom1/E1M1" to "freedoom2/MAP32".
      state: [3] float32, x, y (m, 1 m is 32 map units), yaw (rad, left positive).
      depth: [240, 320] float32 m, depth of the pixels of the 4:3 view.
    """

    LEVELS = tuple(f"freedoom1/E{e}M{m}" for e in range(1, 5) for m in range(1, 10)) + tuple(
        f"freedoom2/MAP{m:02}" for m in range(1, 33)
    )
    UNIT, TICS, FRICTION = 1 / 32, 9, 0.90625
    GAMMA = np.uint8(255 * (np.arange(256) / 255) ** 0.6 + 0.5)  # the game is darker than photos

    def __init__(self, level, seed, size=128):
        vizdoom, self.cv2 = _need("vizdoom", "cv2")
        game, name = level.split("/")
        self.size, self.game = size, vizdoom.DoomGame()
        self.game.set_doom_game_path(str(pathlib.Path(vizdoom.__file__).parent / f"{game}.wad"))
        self.game.set_doom_map(name)
        self.game.set_seed(seed)
        self.game.set_screen_resolution(vizdoom.ScreenResolution.RES_640X480)
        self.game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        self.game.set_depth_buffer_enabled(True)
        self.game.set_window_visible(False)
        self.game.set_sound_enabled(False)
        for part in (
            "hud weapon crosshair particles decals messages corpses effects_sprites screen_flashes"
        ).split():
            getattr(self.game, f"set_render_{part}")(False)
        buttons = "MOVE_FORWARD_BACKWARD_DELTA MOVE_LEFT_RIGHT_DELTA TURN_LEFT_RIGHT_DELTA"
        self.game.set_available_buttons([getattr(vizdoom.Button, b) for b in buttons.split()])
        variables = "POSITION_X POSITION_Y ANGLE VELOCITY_X VELOCITY_Y".split()
        self.game.set_available_game_variables(
            [getattr(vizdoom.GameVariable, v) for v in variables]
        )
        self.game.set_episode_timeout(10**8)
        # Without -nosound, OpenAL may abort; without movebob 0, the view bobs with the speed, which
        # the labels do not include.
        self.game.add_game_args("-nosound -nomonsters +sv_cheats 1")
        self.game.init()
        self.game.send_game_command("iddqd")
        self.game.send_game_command("movebob 0")
        self.game.make_action([0, 0, 0], 2 * self.TICS)  # commands are ignored in the first tics

    def _observe(self):
        observation = self.game.get_state()
        if observation is None:
            raise LeftLevel("the walker left the level")
        return observation

    @property
    def state(self):
        x, y, yaw = self._observe().game_variables[:3]
        return np.float32([x * self.UNIT, y * self.UNIT, np.deg2rad(yaw)])

    @property
    def depth(self):
        return self._observe().depth_buffer[::2, ::2] * np.float32(0.22)  # calibrated on walls

    def step(self, action):
        """Walks for 9 tics of 1/35 s (3.89 Hz).

        Args:
          action: [3] displacement dx forward (m), dy left (m), dyaw left (rad), in the body frame
            before the step.
        """
        dx, dy, dyaw = (float(a) for a in action)
        yaw, *velocity = self._observe().game_variables[2:5]
        middle = np.deg2rad(yaw) + dyaw / 2
        cos, sin = np.cos(middle), np.sin(middle)
        velocity = np.array([[cos, sin], [-sin, cos]]) @ velocity
        cos, sin = np.cos(dyaw / 2), np.sin(dyaw / 2)
        target = np.array([cos * dx + sin * dy, cos * dy - sin * dx]) / self.UNIT
        # In each tic: speed += thrust; position += speed; speed *= FRICTION. Solves for the
        # constant thrust, in 1/32 map unit, whose displacement is `wanted`.
        decay = self.FRICTION ** np.arange(self.TICS)
        thrust = 32 * (target - decay.sum() * velocity) / decay.cumsum().sum()
        thrust, rest = np.clip(thrust, -45, 45), np.zeros(2)
        turn = -np.rad2deg(dyaw) / self.TICS
        for tic in range(self.TICS):
            integers = np.floor(thrust + rest + 0.5)  # thrust is an integer: carry the rest
            rest += thrust - integers
            self.game.set_action([integers[0], -integers[1], turn])
            self.game.advance_action(1, tic == self.TICS - 1)

    def render(self):
        """Renders the center square of the walker's 4:3 view, brightened, uint8 [H, W, 3]."""
        image = self._observe().screen_buffer
        edge = (image.shape[1] - image.shape[0]) // 2
        square = np.ascontiguousarray(image[:, edge : edge + image.shape[0]])
        image = self.cv2.resize(square, (self.size, self.size), interpolation=self.cv2.INTER_AREA)
        return self.GAMMA[image]

    def close(self):
        self.game.close()

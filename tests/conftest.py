"""Sets JAX up for the tests, and makes the tiny models and videos that they share.

CPU with 8 virtual devices unless JAX_PLATFORMS says otherwise; no silent rank promotion; XLA
optimizes nothing, since compilation takes most of the tests' time; compiled programs are kept
between runs. All of it as environment variables, so that subprocesses of tests inherit it; these
have one device.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
LEVEL, FUSION, DEVICES = (
    "--xla_backend_optimization_level",
    "--xla_cpu_use_fusion_emitters",
    "--xla_force_host_platform_device_count",
)
GIVEN = [
    flag
    for flag in os.environ.get("XLA_FLAGS", "").split()  # xdist's workers have their parent's
    if not flag.startswith((LEVEL, FUSION, DEVICES))
]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        GIVEN.append(f"{FUSION}=false")  # unknown to later versions
# XLA_FLAGS of a subprocess, and options of `jax.jit`, for what computes more than it compiles.
OPTIMIZED = " ".join(GIVEN)
COMPUTES_MORE = {LEVEL.removeprefix("--"): 3}
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "lawm_jax" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# PyTorch with CUDA imports triton, which crashes once the simulators' Mesa has loaded its LLVM.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

import jax  # noqa: E402
import numpy as np  # noqa: E402
import orbax.checkpoint as ocp  # noqa: E402
import pytest  # noqa: E402

if os.environ["JAX_PLATFORMS"] == "cpu":  # elsewhere xdist's parent would take the memory
    flags = f"{OPTIMIZED} {LEVEL}=0"
    os.environ["XLA_FLAGS"] = f"{flags} {DEVICES}=8"
    jax.devices()  # reads it
    os.environ["XLA_FLAGS"] = flags

# Else each of 8 devices saves a slice of every array, and each slice is a program to compile.
ocp.type_handlers.register_type_handler(
    jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False), override=True
)
ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def _forget():
    """Lets go of a file's compiled programs, which otherwise grow to 7 GB."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def all_devices():
    return jax.devices()


@pytest.fixture(scope="session")
def devices(all_devices):
    """Returns 8 devices, or skips the test on a machine with fewer."""
    if len(all_devices) < 8:
        pytest.skip("needs 8 devices")
    return all_devices[:8]


@pytest.fixture(scope="module")
def one_device(all_devices):
    """Lets a file's training runs see one device: they compile faster than those on 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: all_devices[:1])
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield


def load_config(name):
    """Returns the get_config of configs/NAME.py."""
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.fixture(scope="session")
def get_config():
    """Returns configs/lawm.py's get_config."""
    return load_config("lawm")


@pytest.fixture(scope="session")
def controller_config():
    """Returns configs/controller.py's get_config."""
    return load_config("controller")


@pytest.fixture(scope="session")
def decoder_config():
    """Returns configs/decoder.py's get_config."""
    return load_config("decoder")


@pytest.fixture(scope="session")
def labelled_config():
    """Returns configs/labelled.py's get_config."""
    return load_config("labelled")


@pytest.fixture
def no_pause(monkeypatch):
    """Lets failed reads be retried at once."""
    from lawm_jax.data import errors

    monkeypatch.setattr(errors, "PAUSES", (0.0,) * 4)


@pytest.fixture(scope="session")
def new_browser(tmp_path_factory):
    """A function that starts Chromium without a window, which logs what it asks of the network."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver")
    flags = "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"

    def start():
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*flags, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        started.append(browser)
        browser.set_script_timeout(20)
        return browser

    started = []
    yield start
    for browser in started:
        browser.quit()


@pytest.fixture(scope="session")
def browser(new_browser):
    return new_browser()


@pytest.fixture(scope="session")
def tiny(get_config):
    """Returns a function (kind, trained=True, **options) -> (model, params, s).

    The model is that of size=tiny, but for the options, which name its latent's fields and
    `normalise`. s is [2, 4, 4, 32], random. `trained` draws every parameter at random, so that
    nothing is zero any more, as a gate is at the start.
    """
    from lawm_jax import world_model

    @functools.cache
    def make(kind="noisy", trained=True, normalise=False, **latent):
        config = get_config(f"size=tiny,latent={kind}")
        config.encoder.normalise = normalise
        config.latent.update(latent)
        model = world_model.build(config)
        s = jax.random.normal(jax.random.key(1), (2, 4, 4, 32))
        if normalise:
            s = s.reshape(2, 4, 4, 4, 8)
            s = s - s.mean(-1, keepdims=True)
            s = (s / s.std(-1, keepdims=True)).reshape(2, 4, 4, 32)
        change = perturb if trained else lambda params: params
        draw = jax.jit(lambda key: change(world_model.init_dynamics(model, key, s)))
        return model, draw(jax.random.key(0)), s

    return make


def normal(*shape, seed=0):
    """Draws normal float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def judged(evaluation, claim, rows, name="noisy"):
    """Returns the answer and text of an evaluation's only verdict, which is on the claim."""
    ((about, answer, text, _),) = evaluation.judge(rows, name)
    assert about == claim
    return answer, text


def sure(value, groups):
    """Returns the interval of values that are the same in all groups, see `metrics.interval`."""
    return {"mean": value, "low": value, "high": value, "groups": groups}


def write_run(config, folder, steps=(1,)):
    """Writes the folder of a run whose checkpoints hold random parameters, without training.

    A controller's are its first ones, with the scale that is measured on data.
    """
    from lawm_jax.data import pipeline
    from lawm_jax.train import checkpoints, loop, rundir

    run = loop.Run.load(config)
    if "controller" in config:
        params = run.begin(pipeline.clips(config))["params"]
    else:
        params = jax.jit(perturb)(run.begin()["params"])
    rundir.write_config(str(folder), config.to_json_best_effort())
    store = checkpoints.Checkpoints(str(folder))
    for step in steps:
        store.save(step, {"params": params}, wait=True)
    store.close()


def write_controller(config, folder, source, step=1):
    """Writes the run of a controller of the tiny world model of step `step` in a folder."""
    from lawm_jax.configs import controller

    own = controller.get_config(f"size=tiny,source={source}")
    own.update(model=str(folder), model_step=step, inverse=config.inverse, latent=config.latent)
    own.encoder = config.encoder
    own.data.update(size=config.data.size, resize=config.data.resize)
    write_run(own, folder / "controller" / source)


def write_prior(folder, step=1):
    """Writes a learned prior, of random parameters, of the tiny world model in a folder."""
    from lawm_jax.train import models

    prior = models.Prior(width=8, depth=1)
    z, s = np.zeros((1, 16), np.float32), np.zeros((1, 1, 448), np.float32)
    params = prior.init(jax.random.key(0), z, np.zeros(1, np.float32), s)["params"]
    models.save_prior(str(folder), step, prior, params)


def run_module(name, *args, **options):
    """Runs a command line in the repository's root: subprocess.CompletedProcess, with text."""
    command = [sys.executable, "-m", f"lawm_jax.{name}", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def perturb(params):
    """Adds noise to all parameters but the codebook and its counts."""
    leaves, tree = jax.tree.flatten({k: v for k, v in params.items() if k != "latent"})
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return params | jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Writes six videos of 4 s, 64 x 64 pixels at 4 frames per second; returns their folder."""
    import av

    folder = tmp_path_factory.mktemp("videos")
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    for number in range(6):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=4)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            place, speed = random.uniform(10, 50, 2), random.uniform(-4, 4, 2)
            for i in range(16):
                row, column = (place + i * speed) % 64
                image = np.full((64, 64, 3), 40 * number, np.uint8)
                image[np.hypot(rows - row, columns - column) < 9] = 255, 200, 30 * number
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    return str(folder)

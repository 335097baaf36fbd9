"""Commands answer a mistake in one line, and lose the traceback of no other error."""

import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap

import jax
import pytest
from absl import app
from conftest import ROOT

from lawm_jax import __main__ as lawm
from lawm_jax import latents
from lawm_jax.data import catalog, words
from lawm_jax.train import command, flags, logs, rundir

# What happens to a command line, each in a fork of one process that has imported what takes long.
FORKS = """
import json, os, runpy, sys, tempfile
from absl import app, flags, logging
from ml_collections import config_flags
from lawm_jax import __main__ as lawm

def parse_only(main, flags_parser):
    flags_parser(sys.argv)
    print("parsed")

results = []
for kind, argv in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            sys.argv = argv
            if kind == "parse":
                app.run = parse_only
            if argv[0] == "lawm":
                lawm.main()
            else:
                runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = [stream.seek(0) or stream.read().decode() for stream in (out, err)]
    results.append([status, *texts])
print(json.dumps(results))
"""


def typed(lines, cwd, kind="run"):
    """Runs command lines in `cwd`: a list of (exit status, stdout, stderr)."""
    asked = json.dumps([(kind, shlex.split(line)) for line in lines])
    done = subprocess.run(
        [sys.executable, "-c", FORKS, asked],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# Mistakes

TINY = "lawm train --config lawm.py:size=tiny --workdir W"
USAGE = {
    "lawm trian": "expected one of train, .*, got trian; did you mean train?",
    "lawm train": "expected --config and --workdir, got neither",
    "lawm train --workdir W": "expected --config, got none",
    "lawm train lawm.py": "expected flags only, got lawm.py",
    "lawm train --config lawm.py --workdir W more": "expected flags only, got more",
    "lawm train --config lawm.py --workdir": "--workdir: expected a value, got none",
    "lawm train --config lwam.py --workdir W": "--config: expected the path of a config file .*",
    "lawm train --config lawm.py:size=big --workdir W": "--config: expected size=tiny.*got size=.*",
    "lawm train --config.steps=3 --workdir W": "--config.steps: expected --config before it, .*",
    "lawm_jax.train": "expected --config and --workdir, got neither",
    f"{TINY} --workdirr W": "unknown flag --workdirr; did you mean --workdir?",
    f"{TINY} --config.stepss=3": "--config.stepss: .* no such field; did you mean --config.steps?",
    f"{TINY} --config.videos=x": "--config.videos: .*; did you mean --config.data.videos?",
    f"{TINY} --config.zzz=x": "--config.zzz: the config has no such field",
    f"{TINY} --config.data.videos=": "--config.data.videos: expected a folder.* an empty .*",
    f"{TINY} --config.steps=few": "--config.steps: expected an integer, got few",
    f"{TINY} --config.data.fps=few": "--config.data.fps: expected a number, got few",
    f"{TINY} --config.encoder.causal=x": "--config.encoder.causal: expected true or false, got x",
    f"{TINY} --config.data=1": "--config.data: expected one of its fields, as in .*, got 1",
    "lawm evaluate --workdir W --only leak": "--only: expected one of prediction, ablation, .*",
    "lawm evaluate --workdir W --data x": "--data: expected NAME=SOURCE, got 'x'",
    "lawm evaluate --workdir W --data x=a --data x=b": "--data: expected each name once, got x.*",
    "lawm study": "NAME: expected one of claims, .*, got none",
    "lawm study claims": "--workdir: expected the folder of the study, got none",
    "lawm plan --workdir W --task arm": "--task: expected one of panda, .*, got arm",
    "lawm study mixture --workdir W --config.stepss=3": "--config.stepss: .*--config.steps?",
    "lawm export --workdir W": "expected --out, got none",
    "lawm export --workdir W --out . ": "--out: expected a folder that does not exist, got .*",
    "lawm export --workdir W --out x --to lary --states": "--states: expected --to arrays with it, "
    "got --to lary",
    "lawm ingest": "expected --videos or --source, and not both",
    "lawm ingest --videos W --size 0": "--size: expected 8 to .*, got 0",
    "lawm export --states false --workdir W --out x": "--states: expected --nostates or "
    "--states=false, got --states false",
    "lawm export --workdir W --out x --states true": "--states: expected --states or "
    "--states=true, got --states true",
    "lawm study claims --workdir W --list false": "--list: expected --nolist or .*",
    f"{TINY} --config.encoder.causal false": "--config.encoder.causal: expected .*=false, got .*",
    "lawm plan --workdir W --task panda --json /dev/null/x": "--json: expected a file to write, "
    "got /dev/null/x, but /dev/null is not a folder",
    "lawm plan --workdir W --task panda --json .": "--json: expected a file to write, got ., but "
    "it is a folder",
    "lawm report W --out /dev/null/x/y": "--out: expected a file to write, got .* is not a folder",
    "lawm export --workdir W --out /dev/null/x": "--out: expected a folder to write to, got .*",
    "lawm ingest --videos W --out /dev/null": "--out: expected a folder to write to, got .*",
    "benchmarks.swm --env=Foo": "--env: expected one of TwoRoom, PushT, got Foo",
    "benchmarks.swm": "expected --workdir, got none",
    "benchmarks.encoder --json=/dev/null/x": "--json: expected a file to write, got .*",
    "benchmarks.encoder --sizes=small,lrge": "--sizes: expected some of tiny, .*mean large?",
    "benchmarks.scaling --round=1": "unknown flag --round; did you mean --rounds?",
}


def test_a_wrong_command_line_is_a_line_a_hint_and_status_2(tmp_path):
    for line, (status, out, err) in zip(USAGE, typed(USAGE, tmp_path), strict=True):
        first, *rest = line.split()
        program = f"lawm {rest[0]}" if first == "lawm" else f"python -m {first}"
        program = "lawm" if program == "lawm trian" else program
        assert status == 2 and out == "", err
        text = USAGE[line].replace("?", r"\?")
        pattern = rf"{program}: error: {text}\ntry `{program} --help`\n"
        assert re.fullmatch(pattern, err), err
    assert not os.listdir(tmp_path)


def test_an_error_in_a_config_of_ones_own_names_the_file_and_the_line(tmp_path):
    (tmp_path / "wrong.py").write_text("def get_config(arg=''):\n    return 1 / 0\n")
    (tmp_path / "none.py").write_text("def get_config(arg=''):\n    pass\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "unclosed.py").write_text("\ndef get_config(:\n")
    (tmp_path / "big.py").write_text(
        "from lawm_jax.configs import lawm\nget_config = lambda: lawm.get_config('size=big')\n"
    )
    names = "wrong", "none", "empty", "unclosed", "big"
    lines = [f"lawm train --config {name}.py --workdir W" for name in names]
    (wrong, none, empty, unclosed, big) = (err for *_, err in typed(lines, tmp_path))
    assert "error: --config=wrong.py: an error in wrong.py, line 2:\n" in wrong
    assert "ZeroDivisionError: division by zero" in wrong
    assert "none.py: expected a ConfigDict from get_config, got None" in none
    assert "empty.py: expected a function get_config, got none" in empty
    assert "an error in unclosed.py, line 2:\n" in unclosed and "SyntaxError" in unclosed
    assert "lawm train: error: --config: expected size=tiny" in big and "Traceback" not in big


def test_a_place_that_cannot_be_written_is_a_message_and_a_missing_file_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in (("file/x", True), ("none/x", False)):
        with pytest.raises(OSError) as raised:
            open(tmp_path / path, "w")
        assert command.is_message(raised.value) == message


def test_a_mistake_that_shows_later_is_one_line_and_status_1(tmp_path):
    (tmp_path / "file").write_text("")
    lines = {
        f"{TINY} --config.data.videos=/nowhere": "train: error: data.videos='/nowhere': no such",
        "lawm ingest --videos /nowhere --out x": "ingest: error: --videos /nowhere: no such file",
        "lawm ingest --source mini:/no --out x": "ingest: error: --source mini:/no: no episodes",
        f"{TINY[:-1]}gs:/b/x": "train: error: workdir: expected a folder, got 'gs:/b/x'; did you "
        "mean gs://b/x?",
        f"{TINY[:-1]}file/x": "train: error: workdir: expected a folder, got a file, '",
        "lawm evaluate --workdir ./none": "evaluate: error: ./none: not found; expected a run",
        "lawm plan --workdir ./none --task panda": "plan: error: ./none: not found; expected a run",
        "lawm play --workdir ./none": "play: error: ./none: not found; expected a run",
    }
    for line, (status, out, err) in zip(lines, typed(lines, tmp_path), strict=True):
        assert (status, out) == (1, ""), err
        assert err.startswith(f"lawm {lines[line]}") and err.count("\n") == 1, err
    assert os.listdir(tmp_path) == ["file"]


def test_a_help_whose_reader_is_gone_ends_quietly(tmp_path):
    for line in "lawm --help", "lawm export --help":
        read, write = os.pipe()
        os.close(read)
        code = "import sys; from lawm_jax.__main__ import main; sys.argv = sys.argv[1:]; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *shlex.split(line)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=write,
            stderr=subprocess.PIPE,
        )
        os.close(write)
        assert done.returncode == -signal.SIGPIPE and not done.stderr


def test_an_error_about_a_source_names_it_as_it_was_typed(get_config):
    config = get_config("size=tiny")
    given = {"street": "/nowhere", "arm": "lerobot:/no"}
    config.data.sources = given
    for name, spec in given.items():
        with pytest.raises(ValueError, match=f"^--data {name}={spec}: ") as raised:
            with flags.as_typed(given):
                catalog.source(config, name, "test")
        assert command.is_message(raised.value)
    with pytest.raises(ValueError, match="^--data street=/nowhere: no clip of the street: all"):
        with flags.as_typed(given):
            raise ValueError("street: no clip of the street: all")
    with pytest.raises(ValueError, match="^invalid literal") as raised:
        with flags.as_typed(given):
            int("arm: x")
    assert not command.is_message(raised.value)


def test_one_thing_is_singular():
    assert [words.counted(n, "clip") for n in (0, 1, 2)] == ["0 clips", "1 clip", "2 clips"]
    assert words.counted("3 and 1", "step") == "3 and 1 steps"


def test_another_config_than_the_runs_is_one_line(get_config, tmp_path):
    config = get_config("size=tiny")
    rundir.write_config(str(tmp_path / "W"), config.to_json_best_effort())
    (tmp_path / "W" / "checkpoints" / "2").mkdir(parents=True)
    ((status, _, err),) = typed([f"{TINY} --config.seed=3"], tmp_path)
    assert status == 1 and err.count("\n") == 1
    assert "or the config of the existing run, got other values: seed was 0, is 3" in err


# What is a message, and what an error of the code

INSIDE = os.path.join(command.PACKAGE, "made_up.py")


def raised(code, file=INSIDE):
    """Returns the error that code raises which is said to be in a file."""
    scope = {"latents": latents, "jax": jax}
    exec(compile(f"def run():\n{textwrap.indent(code, '    ')}", file, "exec"), scope)
    try:
        scope["run"]()
    except Exception as error:
        return error


MESSAGES = [
    "raise ValueError('x: expected 1, got 2')",
    "raise FileNotFoundError('x: not found')",
    "raise ImportError('requires: pip install x')",
    "raise FloatingPointError('step 3: loss nan')",
    "try:\n    int('x')\nexcept ValueError as error:\n    raise ValueError('x') from error",
    "latents.make(kind='odd', dim=2)",
]
FAULTS = [
    "int('x')",
    "open('/nowhere')",
    "raise TypeError('x')",
    "raise KeyError('x')",
    "assert False, 'x'",
    "list(zip([1], [], strict=True))",
    "import nowhere",
    "raise ValueError(int('x'))",
    "try:\n    int('x')\nexcept ValueError:\n    raise",
    "try:\n    int('x')\nfinally:\n    pass",
    "jax.numpy.zeros(3) + jax.numpy.zeros(4)",
    "jax.jit(lambda: latents.make(kind='odd', dim=2))()",
    "jax.eval_shape(lambda: latents.make(kind='odd', dim=2))",
]


@pytest.mark.parametrize("code", MESSAGES)
def test_what_the_package_raises_for_the_user_is_a_message(code):
    assert command.is_message(raised(code))


@pytest.mark.parametrize("code", FAULTS)
def test_what_the_code_python_or_jax_raises_is_no_message(code):
    error = raised(code)
    assert isinstance(error, Exception) and not command.is_message(error)


def test_what_others_raise_is_no_message():
    assert not command.is_message(raised("raise ValueError('x')", "/elsewhere/library.py"))


def fail(error):
    """Returns a function that fails as the package does, or as its code does."""
    scope = {}
    exec(compile(f"def run():\n    {error}", INSIDE, "exec"), scope)
    return scope["run"]


def test_a_fault_keeps_its_traceback_and_a_message_does_with_lawm_traceback(monkeypatch, capsys):
    with pytest.raises(ValueError, match="invalid literal"):
        command.reporting(fail("int('x')"))()
    message = fail("raise ValueError('x: expected 1, got 2')")
    with pytest.raises(SystemExit) as stopped:
        command.reporting(message)()
    assert (
        stopped.value.code == 1 and capsys.readouterr().err == "lawm: error: x: expected 1, got 2\n"
    )
    monkeypatch.setenv("LAWM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="expected 1, got 2"):
        command.reporting(message)()


@pytest.mark.parametrize(
    "error, status, text",
    [
        (
            "raise KeyboardInterrupt",
            130,
            "lawm: interrupted; run the same command to resume\n",
        ),
        ("raise SystemExit('W: busy')", 1, "lawm: error: W: busy\n"),
        ("raise SystemExit(143)", 143, ""),
    ],
)
def test_an_interruption_is_one_line_and_an_exit_keeps_its_status(error, status, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.reporting(fail(error), resumes=True)()
    assert stopped.value.code == status and capsys.readouterr().err == text


def test_wrong_arguments_that_a_command_finds_are_usage_mistakes(capsys):
    def main():
        raise app.UsageError("--part: expected i/n, got 3")

    with pytest.raises(SystemExit) as stopped:
        command.reporting(main)()
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err == "lawm: error: --part: expected i/n, got 3\ntry `lawm --help`\n"
    )


# Help

NAMES = list(lawm.COMMANDS)


def test_a_commands_help_is_a_screen_with_examples_that_parse_and_every_flag(tmp_path):
    helps = typed([f"lawm {name} --help" for name in NAMES], tmp_path)
    examples = []
    for name, (status, out, err) in zip(NAMES, helps, strict=True):
        lines = out.splitlines()
        assert status == 0 and err == ""
        assert len(lines) <= 45 and max(map(len, lines)) <= 100
        assert re.match(r"[A-Z][a-z]+s .*[.?]$", lines[0]) and lines[2] == "Examples:"
        found = [line.strip() for line in lines if line.startswith("  lawm ")]
        assert len(found) == 3
        examples += found
        source = (ROOT / "lawm_jax" / name / "__main__.py").read_text()
        flags = re.findall(r"(?:DEFINE|define)_\w+\(\s*\"([\w-]+)\"", source)
        shown = re.findall(r"^  --([a-z_-]+) ", out[out.index("\nFlags:") :], re.M)
        assert flags == shown
    for example, (status, out, err) in zip(
        examples, typed(examples, tmp_path, "parse"), strict=True
    ):
        assert status == 0 and out == "parsed\n", example + err


def test_help_has_other_names_and_versions_are_one_line(tmp_path):
    lines = "lawm help train", "lawm train -h", "lawm train --help", "lawm_jax.train --help"
    lines += "lawm -V", "lawm --version", "lawm", "lawm --help", "lawm train --helpfull"
    done = typed(lines, tmp_path)
    assert all(status == 0 and not err for status, _, err in done)
    one, other, third, module, short, version, bare, general, full = (out for _, out, _ in done)
    assert one == other == third and bare == general and short == version
    assert module == one.replace("  lawm train", "  python -m lawm_jax.train")
    assert re.fullmatch(r"lawm_jax [\d.]+, jax [\w.]+, flax [\w.]+, Python [\d.]+\n", version)
    assert all(f"\n  {name} " in general for name in lawm.COMMANDS)
    assert "--config.steps" in one and "--config.data.videos" in one
    assert full.startswith(one) and "--pdb" in full and "--pdb" not in one


# Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


METRICS = {"loss": 2.0, "error": 1.0, "copy": 2.0}


def test_a_terminal_shows_a_bar_and_lines_above_it(monkeypatch, tmp_path):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    handler = logging.StreamHandler(screen)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    log = logs.Log(str(tmp_path), 10, 8)
    for step in range(1, 11):
        log.advance(step)
        if step % 5 == 0:
            log.step(step, METRICS)
            print("a line", end=" ")
            print("of two parts")
            logging.getLogger("data").warning("skipped file")
    log.close()
    print("after")
    assert sys.stdout is screen and handler.stream is screen
    text = screen.getvalue()
    parts = [part.strip() for part in re.split(r"[\r\n]+", text) if part.strip()]
    bars = [part for part in parts if "|" in part]
    assert [part for part in parts if "|" not in part] == [
        *["a line of two parts", "skipped file"] * 2,
        "after",
    ]
    assert bars[0].startswith("step 0/10 |") and bars[-1].startswith("step 10/10 |##########| ETA")
    assert "loss 2.0000" in bars[-1] and "clips/s" in bars[-1]
    # Each line begins where the bar was cleared, never after it.
    assert not re.search(r"\|[^\r\n]*(a line|skipped|after)", text)


def test_elsewhere_each_logged_step_is_a_plain_line(tmp_path, capsys):
    log = logs.Log(str(tmp_path), 10, 8)
    for step in (1, 10):
        log.advance(step)
        log.step(step, METRICS)
    log.close()
    first, last = capsys.readouterr().out.splitlines()
    assert first == "step  1/10  loss 2.0000  error 1.0000 (0.500x copying)"
    assert re.fullmatch(
        re.escape(first.replace(" 1/", "10/")) + r"  [\d.]+ clips/s  ETA 0:00", last
    )

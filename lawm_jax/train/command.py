"""Runs a command: parses its flags, prints its help, and reports mistakes in one line.

An error is reported in one line, without its traceback, only if it is a message for the user, see
`is_message`. Every other error keeps its traceback; LAWM_TRACEBACK=1 keeps all of them.
"""

import difflib
import dis
import errno
import itertools
import logging
import multiprocessing
import os
import re
import signal
import sys
import textwrap
import warnings

from absl import app, flags
from absl import logging as absl_logging

from lawm_jax.data.settings import Refused

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Types of the errors that the package raises as messages for the user.
MESSAGES = ValueError, OSError, ImportError, RuntimeError, FloatingPointError
TRACERS = "jax", "flax"
WIDTH = 100
USAGE, FAILED, INTERRUPTED = 2, 1, 130  # exit codes
# System errors that are caused by a path on the command line, not by the code.
PLACES = errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR
BOOLEANS = "true", "false", "yes", "no", "t", "f", "y", "n", "1", "0"
# Patterns of absl's messages, and their replacements.
REWORDED = {
    r"flag --([^=]+)=(.*): Failed to parse .* as a ConfigDict.*": (
        r"--\1: expected one of its fields, as in --\1.FIELD=VALUE, got \2"
    ),
    r"flag --([^=]+)=(.*): invalid literal for int.*": r"--\1: expected an integer, got \2",
    r"flag --([^=]+)=(.*): could not convert string to float.*": r"--\1: expected a number, got \2",
    r"flag --([^=]+)=(.*): \('Non-boolean arg.*": r"--\1: expected true or false, got \2",
    r"flag --([^=]+)=(.*): \S+ is not (an? .*)": r"--\1: expected \3, got \2",
    r"flag --[^=]+=.*?: (--.*)": r"\1",
    r"flag --([^=]+)=.*?: (.*, got .*)": r"--\1: \2",
    r"flag (--.*)": r"\1",
    r"Missing value for flag --(.*)": r"--\1: expected a value, got none",
    r"Unknown command line flag '(\w+)\.(.*?)'.*": r"--\1.\2: expected --\1 before it, got none",
    r"Unknown command line flag '(.*?)'\. Did you mean: ([^ ,]+).*": (
        r"unknown flag --\1; did you mean --\2?"
    ),
    r"Unknown command line flag '(.*)'": r"unknown flag --\1",
}
CHOICES = r"flag --([^=]+)=(.*): value should be one of <(.*)>"


def run(main, positional=False, resumes=False):
    """Parses the flags of the command line and calls `main`, in place of `absl.app.run`.

    The help is the docstring of main's module, followed by the flags that it defines.

    Args:
      main: function of the arguments that are no flags, after the name of the program.
      positional: whether there may be such arguments.
      resumes: whether the same command resumes an interrupted one.
    """

    def parse(argv):
        full = any(arg.lstrip("-") == "helpfull" and arg[0] == "-" for arg in argv[1:])
        if full or set(argv[1:]) & {"--help", "-help", "-h", "-?", "--helpshort"}:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
            text = f"\n\nFlags of all modules:\n{flags.FLAGS.get_help()}" if full else ""
            print(f"{describe(main)}{text}")
            sys.exit()
        _check_booleans(argv)
        first = [arg for arg in argv[1:2] if not arg.startswith("-")]
        args = [""] + first if first and not positional else flags.FLAGS(argv)
        if len(args) > 1 and not positional:
            _check_booleans(argv)  # now also of configs' fields
            raise app.UsageError(f"expected flags only, got {' '.join(args[1:])}")
        absl_logging.set_verbosity(absl_logging.WARNING)
        return args

    if sys.stderr.isatty():  # other outputs keep the date and place of each line
        absl_logging.get_absl_handler().setFormatter(
            logging.Formatter("%(levelname)s: %(message)s")
        )
    plain = warnings.formatwarning
    warnings.formatwarning = lambda text, kind, *place, **more: (  # omits the place of our own
        f"warning: {text}\n" if kind is UserWarning else plain(text, kind, *place, **more)
    )
    try:
        app.run(reporting(main, resumes), flags_parser=reporting(parse, resumes))
    except SystemExit as error:
        if error.code == INTERRUPTED:  # threads that are reading files would crash a slow exit
            for process in multiprocessing.active_children():
                process.terminate()
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        raise


def _check_booleans(argv):
    """Raises UsageError if a boolean flag is followed by its value without "=", as in --x false.

    Otherwise absl would treat the value as an argument and ignore all flags after it.
    """
    for arg, value in itertools.pairwise(argv):
        name = arg.lstrip("-")
        flag = flags.FLAGS[name] if arg[0:1] == "-" and name in flags.FLAGS else None
        if flag is not None and flag.boolean and value.lower() in BOOLEANS:
            off = value.lower() in ("false", "no", "n", "f", "0")
            short = f"--no{name}" if off else f"--{name}"
            raise app.UsageError(
                f"--{name}: expected {short} or --{name}={value}, got {arg} {value}"
            )


def is_message(error):
    """Returns whether an error is a message for the user, which needs no traceback.

    It is one if a `raise` statement of the package raised it and its type is in `MESSAGES`. Errors
    raised by other libraries, by operators or while JAX traces a function, which are caused by
    mistakes in the code, are not. A system error about a path that can't be written, see `PLACES`,
    is also a message.
    """
    if isinstance(error, OSError) and error.errno in PLACES and error.filename:
        return True
    if not isinstance(error, MESSAGES) or hasattr(error, "__notes__"):  # JAX adds notes
        return False
    frames, traceback = [], error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lasti))
        traceback = traceback.tb_next
    libraries = {frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames}
    if not frames or not libraries.isdisjoint(TRACERS):
        return False
    code, instruction = frames[-1][0].f_code, frames[-1][1]
    in_package = code.co_filename.startswith(PACKAGE + os.sep)
    return in_package and code.co_code[instruction] == dis.opmap["RAISE_VARARGS"]


def stop(text, status=FAILED):
    """Exits with one line about a mistake and, for a usage error, one that names the help."""
    print(f"{program()}: error: {text}", file=sys.stderr)
    if status == USAGE:
        print(f"try `{program()} --help`", file=sys.stderr)
    sys.exit(status)


def program():
    """Returns the command as it was typed: "lawm train" or "python -m lawm_jax.train"."""
    name = sys.argv[0]
    inside = os.path.relpath(os.path.splitext(name)[0], os.path.dirname(PACKAGE)).split(os.sep)
    if inside[0] not in (os.path.basename(PACKAGE), "benchmarks"):
        return name if name.startswith("lawm ") else "lawm"
    return f"python -m {'.'.join(inside).removesuffix('.__main__')}"


def describe(main):
    """Returns the help of the command whose function is `main`."""
    text = main.__globals__["__doc__"].strip()
    if program().startswith("python"):
        text = re.sub(r"^  lawm (\w+)", r"  python -m lawm_jax.\1", text, flags=re.M)
    names = [x.name for x in main.__globals__.values() if isinstance(x, flags.FlagHolder)]
    width = 6 + max(map(len, names))
    lines = []
    for name in names:
        flag = flags.FLAGS[name]
        about, default = flag.help.split(";\n")[0], flag.default
        if isinstance(default, list):
            default = ",".join(map(str, default))
        if type(default) in (int, float, str) and default and "efault" not in about:
            about += f" Default: {default}."
        start, rest = f"  --{name}".ljust(width), " " * width
        lines += textwrap.wrap(
            about, WIDTH, initial_indent=start, subsequent_indent=rest, break_on_hyphens=False
        )
    return "\n".join([text, "", "Flags:", *lines])


def closest(name, choices):
    """Returns "; did you mean NAME?" for the closest of the known names, "" if none is close."""
    matches = difflib.get_close_matches(name, choices, 1)
    return f"; did you mean {matches[0]}?" if matches else ""


def reporting(function, resumes=False):
    """Wraps a function: mistakes and interruptions end the process with one line."""

    def call(*args):
        try:
            return function(*args)
        except KeyboardInterrupt:
            again = "; run the same command to resume" if resumes else ""
            line = "\n" if sys.stderr.isatty() else ""  # ends the line of ^C
            print(f"{line}{program()}: interrupted{again}", file=sys.stderr)
            text, status = None, INTERRUPTED
        except SystemExit as error:
            if not isinstance(error.code, str):
                raise
            text, status = error.code, FAILED
        except Exception as error:
            usage = isinstance(error, (flags.Error, app.UsageError, Refused))
            if os.environ.get("LAWM_TRACEBACK") == "1" or not (usage or is_message(error)):
                raise
            text = f"--{error}" if isinstance(error, Refused) else str(error)
            text, status = (_reworded(text), USAGE) if usage else (text, FAILED)
        # The error is gone here, and so are its frames and the threads that read data.
        if text is not None:
            stop(text, status)
        sys.exit(status)

    return call


def _reworded(text):
    """Returns a message of absl in the package's terms."""
    missing = re.findall(r"Flag (--\S+) must have a value other than None", text)
    if missing:
        return f"expected {' and '.join(missing)}, got {'neither' if missing[1:] else 'none'}"
    if match := re.fullmatch(CHOICES, text, re.S):
        name, value, names = *match.groups()[:2], match[3].split("|")
        return f"--{name}: expected one of {', '.join(names)}, got {value}{closest(value, names)}"
    for pattern, replacement in REWORDED.items():
        if match := re.fullmatch(pattern, text, re.S):
            return match.expand(replacement)
    return text

"""The documentation is true of the package: its code runs, its links, flags and numbers exist."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, write_controller, write_prior, write_run

import lawm_jax as lawm
from lawm_jax.configs import controller, decoder, labelled
from lawm_jax.configs import lawm as world
from lawm_jax.plan import search
from lawm_jax.train import exported

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, *(ROOT / name for name in ("README.md", "launch/README.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def load_hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


def blocks(page, language):
    """Lists the fenced code of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def prose(page):
    """Returns the text of a page without its fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)


# Code


@pytest.fixture(scope="module")
def shipped(tmp_path_factory, one_device):
    """The model that ships or, where it does not yet, a tiny one with the same parts."""
    if (exported.SHIPPED["nano"] / "model.safetensors").exists():
        yield
        return
    run, out = (tmp_path_factory.mktemp(name) for name in ("run", "exported"))
    config = world.get_config("size=tiny,latent=noisy")
    write_run(config, run)
    for source in ("panda", "nav"):
        write_controller(config, run, source)
    write_prior(run)
    lawm.save_pretrained(out / "nano", run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(exported.SHIPPED, "nano", out / "nano")
        yield


@pytest.mark.parametrize("name, least", [("README.md", 1), ("docs/library.md", 9)])
def test_the_pages_code_runs_as_it_stands(name, least, shipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, variables = blocks(ROOT / name, "python"), {}
    assert len(found) >= least
    for code in found:
        exec(compile(code, name, "exec"), variables)
    assert variables["seen"].dtype == np.uint8 and variables["seen"].ndim == 5


@pytest.mark.parametrize("name", NAMES)
def test_all_other_code_is_python(name):
    for code in blocks(ROOT / name, "python"):
        ast.parse(code)


def test_the_readmes_library_part_is_15_lines():
    (code,) = blocks(ROOT / "README.md", "python")
    assert len(code.strip().splitlines()) <= 15


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# Links


def slugs(page):
    """Returns the anchors of a page's headings, as Python-Markdown makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_to_a_file_or_heading_resolves(name):
    page = ROOT / name
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"<!--.*?-->", "", prose(page), flags=re.S))
    for link in links:
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), link
        assert not anchor or anchor in slugs(file), link
        inside = file.resolve().is_relative_to(ROOT / "docs")
        assert inside or page.parent != ROOT / "docs", f"{link} is not part of the site"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_is_named_exists(name):
    pattern = r"`((?:lawm_jax|configs|docs|launch|tests|colab|benchmarks)/[\w./-]+\.\w+)`"
    for path in re.findall(pattern, prose(ROOT / name)):
        own = path.startswith("lawm_jax/assets/nano/")  # made by make_nano
        assert own or "DEVICE" in path or (ROOT / path).exists(), path


# Flags


def module_file(module):
    path = ROOT.joinpath(*module.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def flags_of(module):
    """Returns the flags that a module defines, read from its source."""
    found = {"help", "helpfull"}
    for node in ast.walk(ast.parse(module_file(module).read_text())):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name.startswith(("DEFINE_", "define_")) or name == "add_argument":
                found.add(str(node.args[0].value).removeprefix("--"))
    return found


CONFIGS = [get("").to_dict() for get in (world.get_config, labelled.get_config)]
CONFIGS += [get("").to_dict() for get in (controller.get_config, decoder.get_config)]
COMMANDS = ("train", "evaluate", "plan", "export", "report", "ingest", "study", "aot")
MODULES = [f"lawm_jax.{name}" for name in COMMANDS] + ["lawm_jax.envs.policies"]
MODULES += [f"benchmarks.{name}" for name in ("train_step", "encoder", "planner", "data")]
SCRIPTS = "\n".join(path.read_text() for path in (ROOT / "launch").glob("*.sh"))
# Flags of other programs: gcsfuse, Slurm, srun, nox, mkdocs, ruff.
OTHERS = {"check", "rename-dir-limit", "requeue", "ntasks-per-node", "force-python", "strict"}
FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*)((?:\.\w+)*)")


def config_has(path):
    """Returns whether a config has a setting, given as ".data.batch"."""
    for config in CONFIGS:
        for key in path.strip(".").split("."):
            config = config.get(key) if isinstance(config, dict) else None
        if config is not None:
            return True
    return False


def commands(page):
    """Lists (module or script, text) of the commands on a page, without what wraps them."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r" -- | && |; ", line):
                module = re.search(r"python -m ((?:lawm_jax|benchmarks)[\w.]*)", part)
                short = re.match(r"\s*lawm (\w+)", part)
                script = re.search(r"bash launch/(\w+\.sh)", part)
                if module or short:
                    yield module[1] if module else f"lawm_jax.{short[1]}", part
                elif script:
                    yield f"launch/{script[1]}", part


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_of_a_command_exists(name):
    for target, text in commands(ROOT / name):
        if target == "lawm_jax.play" and not module_file(target).exists():
            continue  # it comes with another change
        if target.startswith("launch/"):
            assert (ROOT / target).exists(), text
            unknown = {flag for flag, _ in FLAG.findall(text) if f"--{flag}" not in SCRIPTS}
        else:
            assert module_file(target).exists(), text
            known = flags_of(target)
            unknown = {flag for flag, _ in FLAG.findall(text)} - known
        assert not unknown, f"{target}: {text}"
        for flag, path in FLAG.findall(text):
            assert flag != "config" or not path or config_has(path), text
        for file, arguments in re.findall(r"--config[ =]configs/(\w+)\.py:?(\S*)", text):
            module = importlib.import_module(f"lawm_jax.configs.{file}")
            module.get_config(arguments.rstrip(")"))


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_in_the_text_exists(name):
    known = set().union(*map(flags_of, MODULES)) | OTHERS | {"port", "workdir"}
    for code in re.findall(r"`([^`\n]+)`", prose(ROOT / name)):
        for flag, path in FLAG.findall(code):
            assert flag in known or f"--{flag}" in SCRIPTS, code
            assert flag != "config" or not path or config_has(path), code


def test_the_search_for_flags_finds_wrong_ones():
    assert "workdir" in flags_of("lawm_jax.evaluate") and "only" in flags_of("lawm_jax.evaluate")
    assert "controller" in flags_of("lawm_jax.study") and "config" in flags_of("lawm_jax.train")
    assert "episodes" in flags_of("lawm_jax.envs.policies")
    assert config_has(".data.augment.cut") and not config_has(".data.augment.cuts")
    assert len(list(commands(ROOT / "docs" / "control.md"))) >= 9


# Numbers


def numbers(found):
    """Yields the numbers of a result file, and the medians of its lists of numbers."""
    if isinstance(found, dict):
        for value in found.values():
            yield from numbers(value)
    elif isinstance(found, list):
        for value in found:
            yield from numbers(value)
        if found and all(isinstance(value, int | float) for value in found):
            yield statistics.median(found)
    elif isinstance(found, int | float):
        yield found


def derived(name, result):
    """Yields what a table computes from a file's numbers: GiB, clips per chip, ratios."""
    if name == "aot":
        for one in result:
            yield from (one["memory"]["total"] / 2**30, one["hbm"] / 2**30)
            yield from (one["batch"] / one["chips"], 1e6 / one["clips"] / 3600)
    if name == "data":
        speeds = result["days"][-1]["clips per CPU second"]
        decord = statistics.median(speeds["raw 720p, decord"])
        yield from (statistics.median(values) / decord for values in speeds.values())


@pytest.mark.parametrize("name", hooks.TABLES)
def test_every_number_of_a_table_is_in_its_file(name):
    file, _ = hooks.TABLES[name]
    result = json.loads((ROOT / "benchmarks" / "results" / file).read_text())
    there = {abs(x) for x in (*numbers(result), *derived(name, result))}
    heading, line, *rows = hooks.table(name).splitlines()
    assert len(rows) >= 3 and set(line) <= set("|- ")
    checked = 0
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == heading.count("|") - 1
        for cell in cells[1:]:
            for text in re.findall(r"\d+(?:\.\d+)?", re.sub(r"`[^`]*`", "", cell)):
                digits = len(text.partition(".")[2])
                assert any(f"{x:.{digits}f}" == text for x in there), f"{text} in {row}"
                checked += 1
    assert checked >= len(rows)


def test_the_pages_use_every_table_and_no_other():
    marked = [re.findall(r"^<!-- table ([\w-]+) -->$", page.read_text(), re.M) for page in DOCS]
    assert sorted(sum(marked, [])) == sorted(hooks.TABLES)


def test_the_dictionary_of_results_has_every_column():
    text = (ROOT / "docs/evaluate.md").read_text().partition("## The results as data")[2]
    files = [*(ROOT / "lawm_jax/evaluate").glob("*.py"), ROOT / "lawm_jax/plan/columns.py"]
    keys = [key for x in files for key in re.findall(r'Column\("[^"]+", "(\w+)', x.read_text())]
    assert len(keys) > 50
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_a_marker_becomes_a_table_and_an_image_a_drawing():
    page = "Before `<!-- table NAME -->`.\n\n<!-- table faults -->\n\n![Text](figures/model.svg)\n"
    made = hooks.on_page_markdown(page)
    assert "`<!-- table NAME -->`" in made and "| all | 100 |" in made
    assert "<svg" in made and "<style>" not in made and 'aria-label="Text"' in made


# The site


def test_the_api_page_has_every_public_name_and_planner():
    named = re.findall(r"^::: lawm_jax\.([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    homes = {f"{getattr(lawm, name).__module__}.{name}" for name in lawm.__all__}
    homes = {home.removeprefix("lawm_jax.") for home in homes}
    planners = {f"plan.planners.{name}" for name in search.PLANNERS}
    assert homes | planners <= set(named) and len(named) == len(set(named))


def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    own = {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    assert 'id="lawm_jax.plan.planners.cem"' in (tmp_path / "api.html").read_text()
    for name in ("results", "claims"):
        page, made = (ROOT / f"docs/{name}.md").read_text(), (tmp_path / f"{name}.html").read_text()
        assert "<!-- table" not in made and made.count("<table>") >= page.count("<!-- table") > 2
    pages = {path.stem for path in pathlib.Path(tmp_path).glob("*.html")}
    assert {page.stem for page in DOCS} <= pages

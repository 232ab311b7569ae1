"""Commands in the documentation name programs, flags, recipes and settings that exist.

Commands are read, not executed; what they do is tested elsewhere. Launch scripts take them in a
dry run.
"""

import ast
import configparser
import re
import shlex
import shutil
import subprocess
from functools import cache

import pytest

from moco_jax import config as config_lib
from moco_jax.cli.commands import ALIASES, COMMANDS, command_of
from tests.config.test_config import load
from tests.markdown import PAGES, ROOT, blocks, name, spans

SETTINGS = config_lib.RECIPE | config_lib.OPERATIONAL
ENDS = {"|", "||", "&&", ";", "&", ">", ">>"}


def file_of(module):
    path = ROOT / module.replace(".", "/")
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()), None)


@cache
def tree_of(module):
    return ast.parse(file_of(module).read_text())


@cache
def imported(module):
    """The modules of this checkout that `module` imports."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = (m for m in found if m.split(".")[0] in ("moco_jax", "benchmarks", "configs"))
    return {m for m in ours if file_of(m)}


@cache
def defined(module):
    """The flags that `module` itself defines, by absl or argparse."""
    calls = (node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call))
    names = set()
    for call in calls:
        made_by = getattr(call.func, "attr", "")
        if made_by.startswith("DEFINE_"):
            names.add(call.args[0].value)
        if made_by == "add_argument":
            names |= {word.value.lstrip("-") for word in call.args}
    return names


def flags_of(module, words):
    """All flags that `python -m module` knows where `words` follow, which may name a subcommand."""
    name = module.removeprefix("moco_jax.").removesuffix(".__main__")
    if module == "moco_jax":
        return flags_of(f"moco_jax.{words[0]}", words[1:]) if words else {"help"}
    name = ALIASES.get(name, name).removeprefix("cli.")  # as console scripts name it
    if name not in COMMANDS:
        return read_flags_of(module)
    command, _ = command_of(name).chosen([module, *words])
    return {"help"} | (set(command.own_flags()) if command.main else set())


@cache
def read_flags_of(module):
    """All flags of a program of `benchmarks`, by its code."""
    package = f"{module}.__main__"
    seen, left, names = set(), [package if file_of(package) else module], {"help"}
    while left:
        one = left.pop()
        if one not in seen:
            seen.add(one)
            names |= defined(one)
            left += imported(one)
    return names


@cache
def scripts():
    """Console script -> its module."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    return {x.split(" = ")[0]: x.split(" = ")[1].split(":")[0] for x in lines if x}


def lines_of(page):
    """Lines of shell, each whole, out of a page."""
    text = page.read_text()
    for language, content in blocks(text):
        if language in ("", "sh"):
            yield from content.replace("\\\n", " ").splitlines()
    for span in spans(text):
        if re.match(r"(python -m (moco_jax|benchmarks)\b|moco-[a-z]+ )", span):
            yield span


def command_in(line):
    """(module, words after it) of the program that a line of shell starts; None if not ours."""
    if not re.search(r"python3? -m |moco-[a-z]|launch/\w+\.sh", line):
        return None
    words = shlex.split(line, comments=True)
    for place, word in enumerate(words):
        after = words[place + 1 :]
        module = scripts().get(word)
        if word == "-m" and after and after[0].split(".")[0] in ("moco_jax", "benchmarks"):
            module, after = after[0], after[1:]
        if re.fullmatch(r"(.*/)?launch/\w+\.sh", word):
            assert (ROOT / word).exists(), word
            if "--" not in after:
                return None
            given = dict(w.split("=", 1) for w in words[:place] if "=" in w)
            module = given.get("MODULE", "moco_jax.main")
            after = after[after.index("--") + 1 :]
        if module:
            ends = [n for n, w in enumerate(after) if w in ENDS]
            return module, after[: ends[0]] if ends else after
    return None


def commands(page):
    found = ((line, command_in(line)) for line in lines_of(page))
    return [(line, *command) for line, command in found if command]


def require_setting(config, key):
    for part in key.split("."):
        assert part in config, f"{key} is no setting"
        config = config[part]


def check(line, module, words, text):
    """AssertionError where a command would not be understood; `text`: of the page it stands on."""
    assert file_of(module), f"{module} is no module: {line}"
    config = SETTINGS
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--config" and not value.isupper():
            recipe, _, variant = value.removeprefix("configs/").partition(":")
            stem = recipe.removesuffix(".py")
            if f'"""{value}:' in text:
                continue  # the page shows the file
            assert (ROOT / "configs" / f"{stem}.py").exists(), f"{recipe} is no recipe: {line}"
            config = load(f"{stem}:{'' if variant.isupper() else variant}")
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--config.") and not flag.isupper():
            key = flag.removeprefix("--config.")
            if not key.isupper():
                require_setting(config, key)
        elif re.match(r"--\w", word):
            known, given = flags_of(module, words), flag.removeprefix("--")
            assert given in known or given.removeprefix("no") in known, f"{flag} is no flag: {line}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_understood(page):
    text = page.read_text()
    for command in commands(page):
        check(*command, text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_in_sentences_exist(page):
    ablation = load("ablation")
    for key in re.findall(r"--config\.([a-z][\w.]*\w)", page.read_text()):
        require_setting(SETTINGS if key in SETTINGS else ablation, key)


def test_what_is_wrong_is_found():
    good = "launch/tpu_pod.sh run -- --config=configs/imagenet.py:v1 --config.lr=1 --workdir=x"
    assert command_in(good)[0] == "moco_jax.main"
    check(good, *command_in(good), "")
    for line, message in (
        ("python -m moco_jax.train_it --workdir=x", "no module"),
        ("python -m moco_jax.main --work_dir=x", "--work_dir is no flag"),
        ("python -m moco_jax.evaluate knn --labels=1", "--labels is no flag"),
        ("python -m moco_jax evaluate knn --labels=1", "--labels is no flag"),
        ("moco-embed search f.npz x --which=key", "--which is no flag"),
        ("moco-pretrain --config=imagenets", "imagenets is no recipe"),
        ("moco-pretrain --config=digits --config.rate=1 && ls", "rate is no setting"),
        ("python -m benchmarks.machine --fast", "--fast is no flag"),
    ):
        with pytest.raises(AssertionError, match=message):
            check(line, *command_in(line), "")
    assert len(commands(ROOT / "README.md")) > 3


def launches(page):
    """The blocks of a page with launch scripts: their exports, and the scripts as dry runs."""
    for language, content in blocks(page.read_text()):
        lines = content.replace("\\\n", " ").splitlines()
        chosen = [line for line in lines if re.match(r"export |(\w+=\S+ )*launch/", line)]
        if language == "sh" and any("launch/" in line for line in chosen):
            yield "\n".join(re.sub(r"(launch/\w+\.sh)", r"\1 --dry-run", line) for line in chosen)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_launch_scripts_take_what_the_page_gives_them():
    (found,) = [page for page in PAGES if page.name == "multihost.md"]
    assert len(list(launches(found))) >= 5
    for block in launches(found):
        done = subprocess.run(
            ["bash", "-euc", block],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere"},
        )
        assert not done.returncode, done.stderr
        assert (
            "imagenet:v2" in done.stdout
            or "imagenet.py:v2" in done.stdout
            or "digits" in done.stdout
            or "moco_jax.evaluate" in done.stdout
        )

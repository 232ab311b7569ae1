"""What an installed package gives: console scripts that say what they do, and recipes by name."""

import configparser
import importlib
import importlib.util
from importlib import metadata
from pathlib import Path

import pytest

import moco_jax
from moco_jax.base.errors import UserError
from moco_jax.cli import ablation, command_line
from moco_jax.cli.commands import COMMANDS
from moco_jax.config import recipe_files

ROOT = Path(moco_jax.__file__).parents[1]


def scripts():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    return dict(line.split(" = ") for line in lines if line)


def test_every_console_script_explains_itself_with_a_command_to_copy():
    for name, target in scripts().items():
        module, function = target.split(":")
        found = importlib.import_module(module)
        assert name in getattr(found, function).__doc__
        typed = module.replace("moco_jax.cli.", "moco_jax.").replace(".pretrain", ".main")
        assert f"python -m {typed}" in found.__doc__
        assert importlib.util.find_spec(typed)
    assert set(scripts()) == {f"moco-{name}" for name in COMMANDS}


def test_help_is_the_docstring_and_the_flags_with_their_defaults(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["moco-ablation", "--help"])
    ablation.run()
    printed = capsys.readouterr().out
    assert printed.startswith(ablation.__doc__.strip())
    assert "\n  --only: One table" in printed
    assert "\n  --debug: " in printed


def test_the_installed_package_is_this_one():
    assert metadata.version("moco_jax") == moco_jax.__version__
    installed = metadata.distribution("moco_jax").entry_points
    assert set(scripts()) <= {script.name for script in installed}
    assert (Path(moco_jax.__file__).parent / "py.typed").exists()


def test_a_recipe_is_found_by_name_or_by_file(tmp_path, monkeypatch):
    assert recipe_files.names() == sorted(p.stem for p in ROOT.glob("configs/[!_]*.py"))
    monkeypatch.chdir(tmp_path)
    found = recipe_files.resolve("--config=imagenet:v1")
    file, variant = found.removeprefix("--config=").split(":")
    assert variant == "v1"
    assert Path(file).read_text() == (ROOT / "configs" / "imagenet.py").read_text()
    (tmp_path / "mine.py").write_text("")
    for word in ("--config=mine.py:v1", "--config.lr=3", "--workdir=imagenet"):
        assert recipe_files.resolve(word) == word
    with pytest.raises(UserError, match=r"did you mean --config=cifar10:cpu\?"):
        recipe_files.resolve("--config=configs/cifar10.py:cpu")


def test_an_error_is_one_line_unless_its_trace_is_asked_for(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        command_line.fail(UserError("lr=-1 is no rate"))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: lr=-1 is no rate\n"
    monkeypatch.setattr("sys.argv", ["moco-pretrain", "--debug"])
    with pytest.raises(UserError):
        command_line.fail(UserError("lr=-1 is no rate"))


def test_ctrl_c_ends_with_a_word_and_its_status(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        command_line.guarded(main, [])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "stopped\n"

"""Commands side by side in one process: each has its own flags, and help loads nothing heavy."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import moco_jax.cli
from moco_jax.cli import command_line, commands, embed, evaluate
from moco_jax.cli.command_line import Command

HEAVY = ("jax", "jaxlib", "tensorflow", "tensorflow_datasets", "flax", "optax", "orbax", "torch")
SUBCOMMANDS = {"evaluate": ["knn", "linear", "finetune", "segmentation"], "embed": ["search"]}
EACH = [
    *([name] for name in commands.COMMANDS),
    *([name, sub] for name, subs in SUBCOMMANDS.items() for sub in subs),
]
LOADED = """
import json, resource, runpy, sys
heavy, module, *sys.argv[1:] = json.loads(sys.argv[1])
runpy.run_module(module, run_name="__main__", alter_sys=True)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([[m for m in heavy if m in sys.modules], used.ru_utime + used.ru_stime]))
"""


def modules():
    found = pkgutil.walk_packages(moco_jax.cli.__path__, "moco_jax.cli.")
    return sorted(module.name for module in found)


@pytest.fixture
def own_modules():
    """The modules that other tests hold, there again after the test."""
    before = {name: module for name, module in sys.modules.items() if "moco_jax.cli" in name}
    yield
    for name, module in before.items():
        sys.modules[name] = module
        package, _, last = name.rpartition(".")
        setattr(sys.modules[package], last, module)


@pytest.mark.usefixtures("own_modules")
def test_all_modules_can_be_imported_together_and_again():
    assert len(modules()) > 15
    for _ in range(2):
        for name in modules():
            sys.modules.pop(name, None)
        for name in modules():
            importlib.import_module(name)


def loaded(module, *words):
    """What a program printed, which heavy modules it loaded, and its seconds of CPU."""
    words = json.dumps([HEAVY, module, *words])
    ended = subprocess.run(
        [sys.executable, "-c", LOADED, words], capture_output=True, text=True, check=False
    )
    assert not ended.returncode, ended.stderr
    *printed, told = ended.stdout.splitlines()
    return "\n".join(printed), *json.loads(told)


@pytest.mark.parametrize("words", EACH, ids=" ".join)
def test_help_loads_nothing_heavy_within_a_second(words):
    name, *rest = words
    module = "main" if name == "pretrain" else name
    printed, heavy, seconds = loaded(f"moco_jax.{module}", *rest, "--help")
    assert heavy == []
    assert seconds < 1
    assert f"python -m moco_jax.{' '.join([module, *rest])}" in printed
    assert "--debug: " in printed or name in SUBCOMMANDS


def test_all_commands_are_listed_with_a_line_each():
    printed, heavy, seconds = loaded("moco_jax")
    assert heavy == []
    assert seconds < 1
    for name in commands.COMMANDS:
        (line,) = [x for x in printed.splitlines() if x.split()[:1] == [name]]
        assert line.endswith(commands.command_of(name).line)
        assert len(line.split()) > 5
    assert loaded("moco_jax", "--help")[0] == printed


@pytest.mark.parametrize(
    ("word", "said"), [("evalute", "did you mean evaluate?"), ("x", "is no command")]
)
def test_a_word_that_is_no_command(monkeypatch, capsys, word, said):
    monkeypatch.setattr("sys.argv", ["moco_jax", word])
    with pytest.raises(SystemExit) as ended:
        commands.run()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_command_is_run_by_its_name(monkeypatch, capsys):
    for words in (["evaluate", "knn", "--help"], ["main", "--help"]):
        monkeypatch.setattr("sys.argv", ["moco_jax", *words])
        commands.run()
    printed = capsys.readouterr().out
    assert printed.startswith(evaluate.COMMAND.subcommands["knn"].help())
    assert printed.endswith(commands.command_of("pretrain").help() + "\n")


def test_help_of_an_evaluation_shows_its_flags_and_those_of_all():
    shown = {
        name: {x.split(":")[0].strip() for x in sub.help().splitlines() if x.startswith("  --")}
        for name, sub in evaluate.COMMAND.subcommands.items()
    }
    common = set.intersection(*shown.values())
    assert {"--workdir", "--weights", "--which", "--untrained", "--distributed"} <= common
    assert {"--k", "--temperature"} <= shown["knn"]
    for flag, name in {
        "--k": "knn",
        "--protocol": "linear",
        "--labels": "finetune",
        "--iterations": "segmentation",
    }.items():
        assert [one for one in shown if flag in shown[one]] == [name]
    listed = evaluate.COMMAND.help()
    for name, sub in evaluate.COMMAND.subcommands.items():
        assert f"  {name:12}  {sub.line}" in listed


@pytest.mark.parametrize(
    ("words", "chosen", "rest"),
    [
        (["knn", "--workdir=a"], "knn", ["--workdir=a"]),
        (["--distributed", "knn", "--workdir=a"], "knn", ["--distributed", "--workdir=a"]),
        (["--workdir", "knn", "linear"], "linear", ["--workdir", "knn"]),
        (["--nountrained", "knn"], "knn", ["--nountrained"]),
    ],
)
def test_a_subcommand_is_found_among_flags(words, chosen, rest):
    command, left = evaluate.COMMAND.chosen(["evaluate", *words])
    assert command is evaluate.COMMAND.subcommands[chosen]
    assert left == ["evaluate", *rest]


def test_a_command_with_work_of_its_own_needs_no_subcommand():
    command, rest = embed.COMMAND.chosen(["embed", "--workdir=a", "--out", "search"])
    assert command is embed.COMMAND
    assert rest == ["embed", "--workdir=a", "--out", "search"]


def test_flags_of_another_evaluation_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.COMMAND.call(["evaluate", "knn", "--workdir=a", "--labels=1"])
    assert ended.value.code == 2
    assert "labels" in capsys.readouterr().err


def test_one_command_after_the_other_in_one_process(monkeypatch, tmp_path):
    """Nothing of a command line is left for the next one, whichever commands they are."""
    seen = []

    def noted(name):
        main = lambda given, words: seen.append((name, given, words))  # noqa: E731
        one = commands.command_of(name)
        return Command(one.about, one.define, main, one.settings)

    train, pack = noted("pretrain"), noted("pack")
    train.call(["a", "--config=digits", "--config.lr=0.5", "--workdir=w", "--verbosity=1"])
    pack.call(["b", "--out=o", "--shards=3", "word"])
    train.call(["c", "--config=imagenet:v1", "--config.epochs=7"])
    first, second, third = seen
    assert (first[1].config.lr, first[1].workdir) == (0.5, "w")
    assert (second[1].out, second[1].shards, second[2]) == ("o", 3, ["word"])
    assert (third[1].config.epochs, third[1].workdir, third[2]) == (7, None, [])
    assert third[1].config.lr == 0.03
    assert first[1].verbosity == third[1].verbosity != 1  # absl's own flags belong to the process
    assert sys.argv[0] not in ("a", "b", "c")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["main", "--config=digits", "--workdr=x"], "workdr"),
        (["main", "--config=digits", "--config.lrr=1", "--workdir=x"], "lrr is not a setting"),
        (["main", "--config=digits", "--config.lr=nan", "--workdir=x"], "lr=nan must be above 0"),
        (["main", "--config=digits", "--config.arch=resnet19", "--workdir=x"], "resnet19"),
        (["doctor", "--config=digits", "--config.keep=1"], "keep=1 must be at least 2"),
        (["ablation", "--config=ablation:digits", "--config.seeds=0", "--workdir=x"], "seeds=0"),
        (["ablation", "--config=digits", "--seeds=2"], "error: --workdir=FOLDER is needed"),
        (["main", "--workdir=x"], "error: --config=configs/RECIPE.py is needed"),
        (["evaluate", "knn"], "--workdir=FOLDER of a run is needed"),
        (["evaluate", "knn", "--which=both"], "which"),
        (["evaluate", "knn", "--workdir=none", "--k=0"], "--k=0: must be whole numbers"),
        (
            ["evaluate", "linear", "--workdir=none", "--rates=1,nan"],
            "--rates=1,nan: must be numbers",
        ),
        (["embed", "--data_dir=x"], "--out=FILE are needed"),
        (["convert", "x"], "two names are needed"),
        (["pack", "x"], "is no flag"),
        (["report"], "a workdir is needed"),
    ],
)
def test_what_is_wrong_is_said_before_anything_heavy_is_loaded(words, said):
    code = """
import json, sys
from moco_jax.cli.commands import ALIASES, command_of
heavy, name, *words = json.loads(sys.argv[1])
try:
    command_of(ALIASES.get(name, name)).call([name, *words])
except SystemExit as ended:
    print(json.dumps([ended.code, [m for m in heavy if m in sys.modules]]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, json.dumps([HEAVY, *words])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stdout) == [2, []]
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_out_of_memory_is_told_in_one_line(capsys):
    import jax

    def work(said):
        raise jax.errors.JaxRuntimeError(said)

    with pytest.raises(SystemExit) as ended:
        command_line.guarded(work, "RESOURCE_EXHAUSTED: 8 GiB\nmore")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("a smaller batch takes less: RESOURCE_EXHAUSTED: 8 GiB")
    with pytest.raises(jax.errors.JaxRuntimeError):
        command_line.guarded(work, "INTERNAL: a bug")

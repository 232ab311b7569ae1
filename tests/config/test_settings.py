"""Every setting has type, bounds and meaning; one line that names it refuses what lies outside."""

import importlib
import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.base.errors import UserError
from moco_jax.cli import commands
from moco_jax.config import registry
from moco_jax.config.settings import OPERATIONAL, RECIPE, SETTINGS, kinds, overview
from moco_jax.parallel import devices
from moco_jax.training import checks

# The same members at every run.
steady = hypothesis_settings(derandomize=True, deadline=None, database=None, max_examples=25)
NUMBERS = [name for name, setting in SETTINGS.items() if setting.range is not None]
CHOSEN = [name for name, setting in SETTINGS.items() if setting.choices is not None]


def accepted(name, value):
    config = config_lib.default_config()
    config[name] = value
    checks.check_values(config)
    return config[name]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_type_bounds_and_meaning(name):
    setting = SETTINGS[name]
    assert setting.kind in kinds.CASTS
    assert setting.group in ("recipe", "operational")
    assert setting.topic
    assert len(setting.meaning.split()) >= 3
    setting.check(setting.default)
    if setting.kind in (int, float):
        assert (setting.range is None) == (setting.choices is not None)
    if setting.range is not None:
        assert -math.inf < setting.range.least < setting.range.most < math.inf
    if setting.choices is not None:
        assert setting.default in setting.choices()
    if setting.several:
        assert isinstance(setting.default, tuple)


def test_the_table_is_whole():
    assert set(config_lib.default_config()) == set(SETTINGS)
    assert [*RECIPE, *OPERATIONAL] == list(SETTINGS)
    assert len([line for line in overview() if line.startswith("  ")]) == len(SETTINGS)


def outside(setting):
    """Values that a setting of numbers refuses: beyond its ends, not finite, of another type."""
    low, high = setting.range.least, setting.range.most
    odd = [math.nan, math.inf, -math.inf, "abc", None, True, 10**400, [low, "x"], 1 + 2j]
    beyond = st.one_of(
        st.integers(max_value=math.ceil(low) - 1),
        st.integers(min_value=math.floor(high) + 1, max_value=2**200),
        st.floats(max_value=math.nextafter(low, -math.inf)),
        st.floats(min_value=math.nextafter(high, math.inf)),
    )
    broken = st.floats(low + 0.001, min(high, 1e6)).filter(lambda x: not x.is_integer())
    tiny = st.floats(5e-324, kinds.SMALLEST, exclude_max=True)  # float32 has only 0 for them
    return st.one_of(st.sampled_from(odd), beyond, broken if setting.kind is int else tiny)


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_outside_is_accepted(name):
    setting = SETTINGS[name]
    low = setting.range.least

    @steady
    @given(st.data())
    def holds(data):
        value = data.draw(outside(setting))
        if setting.several:
            many = max(setting.lengths, default=3)
            place, other = data.draw(st.integers(0, many - 1)), (setting.default or (low,))[0]
            value = tuple(value if n == place else other for n in range(many))
        with pytest.raises(UserError, match=rf"^{name}=.*try") as stopped:
            setting.check(value)
        assert "\n" not in str(stopped.value)

    holds()


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_inside_is_accepted_and_kept(name):
    setting = SETTINGS[name]
    low, high = setting.range.least, setting.range.most
    inside = (
        st.integers(low, high)
        if setting.kind is int
        else st.floats(low, high, exclude_min=setting.range.above, exclude_max=setting.range.below)
    )
    if setting.kind is float:
        inside = inside.filter(lambda x: x == 0 or abs(x) >= kinds.SMALLEST)
    if setting.rule is not None and not setting.several:
        inside = inside.filter(lambda x: not setting.rule(x))

    values = inside
    if setting.several:
        lengths = st.sampled_from(setting.lengths or (0, 1, 2))
        many = lengths.flatmap(
            lambda n: st.lists(inside, min_size=n, max_size=n, unique=not setting.lengths)
        )
        rule = setting.rule or (lambda found: "")
        rising = many.map(lambda found: tuple(sorted(found)))
        values = rising.map(lambda found: found[::-1] if rule(found) else found)
        values = values.filter(lambda found: not rule(found))

    @steady
    @given(values)
    def holds(value):
        setting.check(value)
        assert setting.cast(value) == value
        assert type(setting.cast(value)) is type(setting.default)
        if 1 in setting.lengths and len(value) == 1:
            assert setting.cast(value[0]) == value
        if setting.kind is int and not setting.several and abs(value) < 2**53:
            setting.check(float(value))
            assert type(setting.cast(float(value))) is int

    holds()


@steady
@given(st.sampled_from(CHOSEN), st.text(max_size=20))
def test_no_name_outside_is_accepted(name, value):
    setting = SETTINGS[name]
    if setting.kind is str and value in setting.choices():
        return
    with pytest.raises(UserError, match=f"^{name}="):
        setting.check(value)


@steady
@given(
    st.sampled_from([n for n, s in SETTINGS.items() if s.kind in (bool, str)]),
    st.one_of(st.integers(), st.floats(), st.none(), st.tuples(st.text()), st.binary()),
)
def test_switches_and_names_are_no_numbers(name, value):
    with pytest.raises(UserError, match=f"^{name}=.* must be .*; try"):
        config_lib.default_config()[name] = value


@pytest.mark.parametrize("name", registry.SOURCES)
def test_every_kind_of_source_is_a_dataset(name):
    accepted("dataset", name)


# What goes wrong with each is told in docs/settings.md's column of what is allowed.
WRONG = {
    "lr": ["nan", "1e40", "-inf", "0", "1e-60", "'0.1'"],
    "temperature": ["inf", "1e-12", "nan", "-0.1"],
    "momentum": ["nan", "1.0", "-0.5"],
    "bank_momentum": ["nan", "1"],
    "weight_decay": ["nan", "-1e-4", "1e39"],
    "sgd_momentum": ["1.0", "2", "nan"],
    "std": ["(1e999,1.0,1.0)", "(1e-30,1.0,1.0)", "(58.4,57.1,57.4)", "(0,1,1)", "(0.2,)"],
    "mean": ["(124.0,116.0,104.0)", "('a','b','c')", "(0.5,0.5)", "(-0.1,0,0)", "0.5", "()"],
    "crop_min": ["2.0", "-0.1", "nan"],
    "crop_ratio": ["(1.34,0.75)", "(1.5,0.5)", "1.0", "(0,1)", "(nan,1)"],
    "jitter": ["(0.4,0.4)", "-1", "(0.4,0.4,0.4,0.6)", "nan", "6.0", "'strong'"],
    "jitter_probability": ["1.5", "(0.5,0.5,0.5)", "nan"],
    "blur_probability": ["-0.1", "(0.5,2)"],
    "blur_sigma": ["1.0", "(2.0,0.1)", "(0.1,100)", "(-1,1)"],
    "rotate_probability": ["90", "('a',)"],
    "white": ["inf", "nan", "1e-30"],
    "image_size": ["1000000", "0", "32.5"],
    "knn_temperature": ["nan", "0"],
    "seed": ["-1", "9223372036854775808"],
    "profile_steps": ["(5,)", "('a','b')", "(5,4)", "(1,2,3)", "(-1,2)"],
    "lr_steps": ["('abc',)", "(160,120)", "(120,120)", "abc", "(0.5,)"],
    "width": ["10**12", "1000000000000"],
    "workers": ["1000000", "-1"],
    "first_epoch": ["1000000", "2", "-1"],
    "warmup_epochs": ["1000000", "100", "nan"],
    "background": ["300", "-2"],
    "dataset": ["tfds:", "tfds: ", "pictures", ""],
    "epochs": ["2.5", "0", "1e300", "1000000000000"],
    "queue_size": ["1000000000000", "nan"],
    "keep": ["1"],
    "symmetric": ["maybe"],
    "arch": ["resnet19"],
}
RIGHT = {
    "lr": ["1e-8", "1", "0.5"],
    "temperature": ["0.01", "1"],
    "momentum": ["0.0", "0"],
    "crop_min": ["1.0"],
    "crop_ratio": ["(1,1)", "(0.5,2)", "()"],
    "jitter": ["0.5", "1", "(0.2,0.2,0.1,0.05)", "()"],
    "blur_probability": ["0", "0.5", "(1,0.1)", "(0.25,)"],
    "blur_sigma": ["(0.1,1)", "(0,0)"],
    "vertical_flip_probability": ["0.5"],
    "rotate_probability": ["1", "(0.0,1.0)"],
    "weight_decay": ["0.0", "0"],
    "mean": ["(0.0,0.0,0.0)", "(0,0,1)"],
    "std": ["(1.0,1.0,1.0)", "(1,1,1)"],
    "white": ["4095.0", "65535"],
    "profile_steps": ["(0,0)", "(20.0,25)"],
    "background": ["255", "-1"],
    "seed": ["4294967295", "9223372036854775807"],
    "epochs": ["2.0", "2e2", "50"],
    "warmup_epochs": ["0.5", "3"],
    "lr_steps": ["(120.0,160)", "()", "30"],
    "dataset": ["tfds:cifar10", "tar"],
    "symmetric": ["True", "false"],
}
EACH = [(name, value, False) for name, values in WRONG.items() for value in values] + [
    (name, value, True) for name, values in RIGHT.items() for value in values
]
FOLDER = ["--config=folder:cpu", "--config.data_dir=nowhere"]


@pytest.fixture(params=["main", "doctor"])
def command(request, monkeypatch, tmp_path):
    """A command line in this process: words -> (its config if it is taken, its status if not)."""

    class Taken(Exception):
        """The settings are checked, and work would begin."""

    def taken(config):
        raise Taken(config)

    name = {"main": "pretrain"}.get(request.param, request.param)
    monkeypatch.setattr(importlib.import_module(f"moco_jax.cli.{name}"), "set_up", taken)

    def run(*words):
        try:
            commands.command_of(name).call([request.param, *words])
        except Taken as passed:
            return passed.args[0], None
        except SystemExit as ended:
            return None, ended.code
        return None, None

    return run


def test_a_command_line_refuses_what_no_run_could_have(command, capsys, tmp_path):
    workdir = tmp_path / "new"
    for name, value, right in EACH:
        config, status = command(*FOLDER, f"--config.{name}={value}", f"--workdir={workdir}")
        said = capsys.readouterr().err
        if right:
            assert config is not None, said
            assert type(config[name]) is type(SETTINGS[name].default)
        else:
            assert status == 2, f"{name}={value} is taken"
            (line,) = said.splitlines()
            assert line.startswith("error: "), line
            assert name in line, line
        assert not workdir.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--noconfig.symmetrc"], "symmetrc is not a setting; did you mean symmetric"),
        (["--config.lr[0]=1"], "is not a setting"),
        (["--config.=1"], "is not a setting"),
    ],
)
def test_words_that_name_no_setting(command, capsys, words, said):
    assert command(*FOLDER, *words, "--workdir=new")[1] == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.epochs = 2.5", "epochs=2.5 must be a whole number"),
        ("config.epocs = 2", "epocs is not a setting; did you mean epochs"),
        ("config.lr = '0.1'", "lr='0.1' must be a number"),
        ("config.mean = None", "mean=None must be numbers"),
        ("config.lr = float('nan')", "lr=nan must be above 0"),
    ],
)
def test_a_recipe_file_with_a_wrong_value(command, capsys, tmp_path, line, said):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from moco_jax.config import default_config\n\n\ndef get_config():\n"
        f"    config = default_config()\n    {line}\n    return config\n"
    )
    assert command(f"--config={recipe}", f"--workdir={tmp_path}/new")[1] == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"error: {said}"), printed


@steady
@given(st.integers(50, 120), st.integers(-(2**20), 2**20))
def test_a_whole_number_stays_itself_as_a_number_or_is_refused(power, more):
    number = 2**power + more
    try:
        assert int(kinds.real(number)) == number
    except ValueError:
        assert int(float(number)) != number


def test_a_recipe_may_write_numbers_as_it_likes():
    config = config_lib.default_config()
    config.update(epochs=np.int64(3), lr=1, warmup_epochs=2, mean=[0, 0.5, 1], seed=5.0)
    config.lr_steps = [1.0, np.float32(2)]
    config.update(augment="v2", jitter=[0.5, 0.5, 0, 0], rotate_probability=np.float32(0.5))
    config.blur_probability = 1
    checks.check_values(config)
    assert (config.epochs, config.lr, config.warmup_epochs, config.seed) == (3, 1.0, 2.0, 5)
    assert (config.mean, config.lr_steps) == ((0.0, 0.5, 1.0), (1, 2))
    assert (config.blur_probability, config.rotate_probability) == ((1.0,), (0.5,))
    json.dumps(config.to_dict())
    assert config.copy_and_resolve_references() == config


def test_a_config_of_an_older_run_is_still_the_same_recipe():
    new = config_lib.default_config()
    older = json.loads(json.dumps(new.to_dict() | {"warmup_epochs": 0, "white": 0, "crop_min": 0}))
    assert config_lib.recipe_differences(older, new) == {}
    new.warmup_epochs = 0.5
    assert config_lib.recipe_differences(older, new) == {"warmup_epochs": (0, 0.5)}


def test_a_config_that_lacks_settings_is_no_recipe():
    with pytest.raises(UserError, match="seed is missing; recipes start from"):
        checks.check_values(ConfigDict({"lr": 0.1}))


def test_rates_that_only_together_are_beyond_float32():
    config = config_lib.default_config()
    config.update(lr=1e38, lr_reference_batch=1)
    with pytest.raises(UserError, match=r"lr=1e\+38 times batch_size=256 .* float32 does not hold"):
        checks.check_values(config)
    config.update(lr_reference_batch=0)
    checks.check_values(config)


def test_a_setting_that_an_unlocked_recipe_adds_is_refused():
    config = config_lib.default_config()
    config.unlock()
    config.tau = 0.2
    with pytest.raises(UserError, match="tau is not a setting; did you mean"):
        checks.check_values(config)


@pytest.mark.parametrize("place", ["file", "file/below", "n" * 300, "/proc/nowhere", "ftp://x/y"])
def test_a_cache_of_programs_that_can_be_no_folder(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    told = []
    monkeypatch.setattr(jax.config, "update", lambda *words: told.append(words))
    config = config_lib.default_config()
    config.compilation_cache = place
    with pytest.raises(
        UserError, match=r"^compilation_cache=.* is no folder .* choose one that you may"
    ):
        devices.set_up(config)
    devices.set_up(config, own=False)
    assert not told
    config.compilation_cache = "new/folder"
    devices.set_up(config)
    assert (tmp_path / "new/folder").is_dir()
    assert ("jax_compilation_cache_dir", "new/folder") in told

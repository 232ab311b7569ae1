"""The flag for convolutions stands beside the user's own, and is set only where jaxlib knows it."""

import os
import subprocess
import sys

import pytest

from moco_jax.parallel import xla_flags

FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(xla_flags, "jaxlib_knows", lambda: True)


@pytest.mark.parametrize("given", ["", "--xla_force_host_platform_device_count=8", " --a=1 --b=2 "])
def test_it_stands_beside_the_users(known, given):
    words = xla_flags.with_fast_convolutions(given).split()
    assert words == [*given.split(), FLAG]


@pytest.mark.parametrize(
    "given",
    [
        "--xla_cpu_experimental_ynn_fusion_type=-reduce",
        f"--a=1 {FLAG}",
        "/etc/flags",  # XLA reads its flags from this file
    ],
)
def test_the_users_word_stays(known, given):
    assert xla_flags.with_fast_convolutions(given) == given


def test_unknown_to_jaxlib_it_is_not_set(monkeypatch):
    monkeypatch.setattr(xla_flags, "jaxlib_knows", lambda: False)
    assert xla_flags.with_fast_convolutions("--a=1") == "--a=1"


def test_a_library_is_searched_for_name_and_value(tmp_path):
    size = 2 << 20
    for name, content, expected in [
        ("both.so", b"\0".join(xla_flags._MARKS), True),
        ("name.so", xla_flags._MARKS[0], False),
        ("neither.so", b"", False),
    ]:
        (tmp_path / name).write_bytes(bytes(size) + content)
        assert xla_flags._contains_marks(tmp_path / name) is expected


def test_only_while_jax_starts(known, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    with xla_flags.while_jax_starts():
        assert os.environ["XLA_FLAGS"] == f"--a=1 {FLAG}"
    assert os.environ["XLA_FLAGS"] == "--a=1"
    monkeypatch.delenv("XLA_FLAGS")
    with xla_flags.while_jax_starts():
        assert os.environ["XLA_FLAGS"] == FLAG
    assert "XLA_FLAGS" not in os.environ


def test_this_jaxlib_starts_with_what_is_set():
    """An unknown flag would end the process here."""
    program = (
        "from moco_jax.parallel import xla_flags; xla_flags.set_up();"
        "import jax; print(jax.numpy.ones(3).sum())"
    )
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False
    )
    assert (run.returncode, run.stdout) == (0, "3.0\n"), run.stderr

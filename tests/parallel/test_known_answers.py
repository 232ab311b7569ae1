"""The compiler in use answers rightly, and each way of answering wrongly is noticed and named."""

import jax
import jaxlib
import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.parallel import known_answers

NAMES = sorted(known_answers.known(known_answers.given()))


def test_this_compiler_is_right():
    assert known_answers.wrong_answers(jax.jit) == []


def test_each_answer_is_what_numpy_says_of_the_same_program():
    """Without its compiler JAX gives the same: the questions and the answers are the same thing."""
    assert known_answers.wrong_answers(lambda function: function) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [0, -1])
def test_one_wrong_value_is_noticed(name, place):
    def compiled(function):
        def run(questions):
            answers = {k: np.array(v) for k, v in jax.jit(function)(questions).items()}
            answers[name].flat[place] += 1
            return answers

        return run

    (said,) = known_answers.wrong_answers(compiled)
    assert said.startswith(f"{name}: ")
    assert "1 of" in said


def test_numbers_are_exact_in_bfloat16():
    """Whole numbers up to 256 lose nothing where devices multiply in bfloat16 or TF32."""
    for operand in known_answers.given().values():
        np.testing.assert_array_equal(operand, operand.astype(jax.numpy.bfloat16), strict=False)


def test_a_wrong_compiler_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(known_answers, "wrong_answers", lambda _: ["sum: 1 for 2"])
    with pytest.raises(UserError) as refused:
        known_answers.require_right()
    said = str(refused.value)
    assert jaxlib.__version__ in said
    assert "sum: 1 for 2" in said
    assert "pip install" in said
    assert "\n" not in said

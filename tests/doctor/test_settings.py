"""Advice on settings: none on the recipes, one with a remedy on each unusual value."""

import pytest

from moco_jax.doctor import settings
from tests.config.test_config import RECIPES, load


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_give_no_cause_for_advice(name):
    config = load(name)
    assert settings.advice(config, config.batch_size) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 1024}, "lr_reference_batch=256 makes it 0.12"),
        (
            {"bn_groups": 64, "shuffle_groups": 4, "lr_reference_batch": 256},
            "bn_groups=32 makes them 8",
        ),
        ({"shuffle_groups": 1}, "does not shuffle BatchNorm"),
        ({"momentum": 0.9}, "0.9 gives 55.2"),
    ],
)
def test_unusual_settings_get_one_advice_with_a_remedy_that_works(changes, words):
    config = load("imagenet")
    config.update(changes)
    (said,) = settings.advice(config, 256)
    assert said.severity == "warning"
    assert words in said.text


def test_an_early_end_that_cannot_come_is_told_before_the_run():
    config = load("digits")
    assert "warning" not in {one.severity for one in settings.length(config, 1437)}
    config.stop_when = "no_gain"
    (said,) = (one for one in settings.length(config, 1437) if one.severity == "warning")
    assert "before the last of 150 epochs 5 count; use monitor_every=13 or patience=2" in said.text

"""The page and the board take names of any bytes.

The page is UTF-8, and nothing in a name turns, hides or ends what follows.
"""

import os

import markupsafe
import pytest
from etils import epath

from moco_jax.base.text import printable
from moco_jax.monitoring import tensorboard_files
from moco_jax.report.page import render
from moco_jax.report.page.images import Pair
from moco_jax.report.page.renewal import SlowParts
from moco_jax.report.page.run import Run
from tests.config.test_config import load
from tests.data.sources.test_names import ODD


@pytest.mark.parametrize("name", ODD)
def test_a_page_prints_whatever_a_name_holds(name):
    text = os.fsdecode(name)
    config = load("folder")
    config.data_dir = text
    records = [{"step": 0, "event": "skipped_step", "who": text}]
    evaluations = {"knn": {"train": text, "results": [{"encoder": text, "accuracy": 0.5}]}}
    run = Run(text, epath.Path("/runs") / text, config, records, evaluations)
    look = SlowParts(
        pairs=[Pair(printable(text), "data:,", "data:,", "data:,")], missing={"map": text}
    )
    page = render.page([run], [look])
    page.encode("utf-8")
    assert page.replace("\n", "").isprintable()
    assert f"who: {markupsafe.escape(printable(text))}" in page
    assert tensorboard_files.settings(config.to_dict())["data_dir"] == printable(text)

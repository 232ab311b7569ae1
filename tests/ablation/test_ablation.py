"""The comparison runs its rows, goes on where it was stopped, and shows means over seeds."""

import json

import pytest
from etils import epath

from configs import ablation as recipe
from moco_jax import config as config_lib
from moco_jax.ablation import rows as ablation
from moco_jax.base.errors import UserError
from moco_jax.cli import ablation as command
from moco_jax.training import checks
from tests import smallest


@pytest.mark.parametrize("variant", ["cifar10", "cifar10_cpu", "digits"])
def test_every_row_is_a_sound_run_of_a_folder_of_its_own(variant):
    config = recipe.get_config(variant)
    names = set()
    for row in config.rows:
        checks.check(ablation.row_config(config.base, row, 1), 1)
        names.add(ablation.folder_name(row, 1))
    assert len(names) == len(config.rows)
    lines = {(row["table"], row["line"]) for row in config.rows}
    negatives = {line for table, line in lines if table == "negatives"}
    assert negatives == {"MoCo", "memory bank", "end-to-end"}


def test_its_settings_are_the_seeds_and_what_all_rows_share():
    config_lib.check_names(["--config.seeds=2", "--config.base.epochs=3"], command.KNOWN)
    with pytest.raises(UserError, match=r"did you mean base\.epochs"):
        config_lib.check_names(["--config.epochs=3"], command.KNOWN)


def test_rows_run_resume_and_are_summed_up(tmp_path, capsys):
    config = recipe.get_config("digits")
    small = dict(
        arch=smallest.ARCH, width=8, epochs=1, stop_at_step=0, monitor_every=1, log_every=1
    )
    config.base.update(
        small | dict(eval_batch_size=256, batch_size=256, bn_groups=8, shuffle_groups=8)
    )
    rows = [
        dict(table="negatives", line="MoCo", x=512, settings=dict(queue_size=512)),
        dict(table="negatives", line="end-to-end", x=255, settings=dict(recipe.END_TO_END)),
    ]
    place = epath.Path(tmp_path)
    for seed in (0, 1):
        folder = place / ablation.folder_name(rows[0], seed)
        assert ablation.run_row(config.base, rows[0], seed, folder) == 0
        assert 0 < ablation.result_of(folder)["knn"] <= 1
    assert ablation.result_of(place / ablation.folder_name(rows[1], 0)) is None
    # The same settings in another table: the run that is there serves it too.
    again = dict(
        table="momentum", line="MoCo", x=0.99, settings=dict(queue_size=512, momentum=0.99)
    )
    found = ablation.summary(config.base, [*rows, again], place, 2)
    assert [row["table"] for row in found] == ["negatives", "momentum"]
    assert found[1]["mean"] == found[0]["mean"]
    results = [ablation.result_of(place / ablation.folder_name(rows[0], s))["knn"] for s in (0, 1)]
    assert found[0]["mean"]["knn"] == pytest.approx(sum(results) / 2)
    assert found[0]["deviation"]["knn"] == pytest.approx(abs(results[0] - results[1]) / 2**0.5)
    ablation.show(found, place, ablation.Console())
    assert json.loads((place / "ablation.json").read_text()) == found
    assert (place / "ablation.png").stat().length > 5000
    assert "512" in capsys.readouterr().out

"""The comparison runs its rows, goes on where it was stopped, and shows means over seeds."""

import json

import pytest
from etils import epath

from configs import ablation as recipe
from moco_jax import config as config_lib
from moco_jax.ablation import rows as ablation
from moco_jax.ablation import tables
from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.cli import ablation as command
from moco_jax.data.sources.memory import ArraySource
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
    found = ablation.summary(config.base, [*rows, again], place, range(2))
    assert [row["table"] for row in found] == ["negatives", "momentum"]
    assert found[1]["mean"] == found[0]["mean"]
    results = [ablation.result_of(place / ablation.folder_name(rows[0], s))["knn"] for s in (0, 1)]
    assert found[0]["mean"]["knn"] == pytest.approx(sum(results) / 2)
    assert found[0]["deviation"]["knn"] == pytest.approx(abs(results[0] - results[1]) / 2**0.5)
    assert found[0]["range"]["knn"] == [min(results), max(results)]
    assert [(run["seed"], run["knn"]) for run in found[0]["runs"]] == [*enumerate(results)]
    tables.show(found, place, Console())
    assert json.loads((place / "ablation.json").read_text()) == found
    assert (place / "ablation.png").stat().length > 5000
    assert "512" in capsys.readouterr().out


SMALL = dict(
    arch=smallest.ARCH,
    width=8,
    epochs=1,
    monitor_every=1,
    knn_examples=256,
    batch_size=256,
    bn_groups=8,
    shuffle_groups=8,
    queue_size=512,
    augment_on="resident",
)


def line(workdir, *words, config="digits", **changes):
    given = [f"--config.{name}={value}" for name, value in (SMALL | changes).items()]
    return ["ablation", f"--config={config}", f"--workdir={workdir}", *given, *words]


def test_a_recipe_is_repeated_with_seeds_and_what_is_done_is_not(tmp_path, capsys, monkeypatch):
    train, seeds = ablation.loop.train, []

    def counted(config, *arguments):
        seeds.append(config.seed)
        return train(config, *arguments)

    monkeypatch.setattr(ablation.loop, "train", counted)
    for number in (1, 2, 2):
        command.COMMAND.call(line(tmp_path, f"--seeds={number}", seed=5))
    assert seeds == [5, 6]
    (row,) = json.loads((tmp_path / "ablation.json").read_text())
    found = [100 * run["knn"] for run in row["runs"]]
    mean, deviation = sum(found) / 2, abs(found[0] - found[1]) / 2**0.5
    shown = capsys.readouterr().out.split("digits")[-1]
    assert f"{mean:.2f} +- {deviation:.2f}" in shown
    assert f"{min(found):.2f} to {max(found):.2f}" in shown
    out = (tmp_path / "digits_seed_6/metrics.jsonl").read_text()
    assert (
        row["runs"][1]["probe"]
        == [r["probe"] for r in map(json.loads, out.splitlines()) if "probe" in r].pop()
    )
    with pytest.raises(SystemExit) as ended:
        command.COMMAND.call(line(tmp_path, "--seeds=2", seed=5, lr=0.1))
    assert ended.value.code == 2
    assert (
        "digits_seed_5 holds a run of other settings (lr: 0.06 -> 0.1)" in capsys.readouterr().err
    )
    # What is done was scored by other neighbours, or trained on other images: no mean of both.
    known, seen = ablation.fingerprint.of, {"images": 1437}
    monkeypatch.setattr(ablation.fingerprint, "of", lambda source: known(source) | seen)
    for changes, count, said in (
        ({"knn_k": 7}, 1437, "(knn_k: 20 -> 7)"),
        ({"stop_when": "no_gain", "patience": 2}, 1437, "(stop_when: 'never' -> 'no_gain'; patie"),
        ({}, 9, "(images: '1437 images' -> '9 images')"),
    ):
        seen["images"] = count
        with pytest.raises(SystemExit):
            command.COMMAND.call(line(tmp_path, "--seeds=3", seed=5, **changes))
        assert f"digits_seed_5 holds a run of other settings {said}" in capsys.readouterr().err


def test_a_recipe_without_labels_is_repeated_by_what_needs_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ArraySource, "labels", lambda self, indices: None)
    command.COMMAND.call(line(tmp_path, "--seeds=2", signals=True))
    (row,) = json.loads((tmp_path / "ablation.json").read_text())
    ranks = [run["effective_rank"] for run in row["runs"]]
    assert row["mean"]["effective_rank"] == pytest.approx(sum(ranks) / 2)
    *_, means, why = capsys.readouterr().out.strip().splitlines()
    assert f"{min(ranks):.2f} to {max(ranks):.2f}" in means
    assert f"{row['mean']['lidar']:.2f} +- {row['deviation']['lidar']:.2f}" in means
    assert why.startswith("no kNN, as the images have no labels")
    # Rows of a comparison are compared by what the encoder is worth, which needs labels.
    config = recipe.get_config("digits")
    with pytest.raises(UserError, match="has no labels, and rows are compared by their kNN"):
        ablation.check(config.base, config.rows[:2], [0], epath.Path(tmp_path / "rows"))


ROWS = "configs/ablation.py:digits"
REFUSED = {
    "--seeds=0: must be a whole number": (["--seeds=0"], {}),
    "--seeds=N says how often digits is run; try --seeds=3": ([], {}),
    "--only=momentum chooses a table": (["--seeds=2", "--only=momentum"], {}),
    "monitor_every=0 gives runs no score": (["--seeds=2"], {"monitor_every": 0}),
    "stop_at_step=5 ends runs before": (["--seeds=2"], {"stop_at_step": 5}),
    "seed=9223372036854775808": (["--seeds=2"], {"seed": 2**63 - 1}),
    "config.base.lr is not a setting": (["--seeds=2"], {"base.lr": 1}),
    "did you mean base.arch": (["--seeds=2"], {"config": ROWS}),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_could_have_no_score_is_refused_with_one_line(said, tmp_path, capsys):
    words, changes = REFUSED[said]
    with pytest.raises(SystemExit) as ended:
        command.COMMAND.call(line(tmp_path / "runs", *words, **changes))
    (error,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert said in error
    assert not (tmp_path / "runs").exists()

"""The page on runs: its markup, its numbers beside the records, what is left out, who gets it.

It is served to this machine alone.
"""

import contextlib
import html
import html.parser
import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from etils import epath

from moco_jax.base.errors import UserError
from moco_jax.evaluation import published
from moco_jax.parallel import mesh
from moco_jax.report.page import charts, curves, embedding, render, settings
from moco_jax.report.page import run as runs_lib
from moco_jax.report.page import watch as watch_lib
from moco_jax.report.page.renewal import Renewal
from moco_jax.report.page.watch import Watch
from moco_jax.training import assembly, checkpoint, environment
from moco_jax.workdir import recipe_check
from tests.config.test_config import load

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and that all of them are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables, self.cell = [], [], [], None
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append(["", []])
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
            self.cell = True
        elif tag == "caption":
            self.cell = False

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th", "caption"):
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None and self.tables:
            if self.cell:
                self.tables[-1][1][-1][-1] += data
            else:
                self.tables[-1][0] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def table(self, caption):
        return next(rows for name, rows in self.tables if name == caption)


def tiny(**changes):
    config = load("digits")
    config.update(dict(width=8, bn_groups=1, shuffle="none", queue_size=256, workers=2, epochs=2))
    config.update(changes)
    return config


LOGGED = ("step", "loss", "top1", "lr", "momentum", "images_per_second", "waiting_share")


def logged(*values):
    return dict(zip(LOGGED, values, strict=True))


RECORDS = [
    {"step": 0, "raw_knn": 0.74, "raw_feature_spread": 0.5},
    {"step": 0, "knn": 0.5, "feature_spread": 0.25},
    logged(11, 6.5, 0.125, 0.06, 0.99, 1234.0, 0.5),
    {"step": 20, "event": "spike", "grad_norm": 77.0, "indices": list(range(9))},
    logged(33, float("nan"), 0.25, 0.03, 0.99, 999.0, 0.0),
    {"step": 44, "knn": 0.75, "feature_spread": 0.5},
]


def write_run(place, config, state, records=RECORDS):
    place = epath.Path(place)
    recipe_check.claim_workdir(place, config.to_dict(), set())
    start = {"step": 0, "event": "start", **environment.facts()}
    start |= {"examples": 1437, "steps_per_epoch": 22, "schedule_shift": 0}
    lines = "".join(json.dumps(r) + "\n" for r in [start, *records])
    (place / "metrics.jsonl").write_text(lines)
    if state is not None:
        checkpoints = checkpoint.Checkpoints(place, 2)
        checkpoints.save(44, state, config.to_dict(), {})
        checkpoints.close()
    return str(place)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two workdirs, the first with a checkpoint and an evaluation."""
    config, folder = tiny(), tmp_path_factory.mktemp("runs")
    lowered = assembly.program(config, mesh.create_mesh(jax.devices()[:1]), 1437).initial.lower()
    state = lowered.compile({"xla_backend_optimization_level": 0})()
    first = write_run(folder / "first", config, state)
    results = [{"encoder": "trained", "k": 20, "accuracy": 0.6125}]
    knn = {"evaluation": "knn", "step": 44, "published": None, "results": results}
    (folder / "first" / "evaluate_knn.json").write_text(json.dumps(knn))
    second = write_run(folder / "second", tiny(momentum=0.9, lr=0.01, seed=3), None, RECORDS[:3])
    return [first, second]


@pytest.fixture(scope="module")
def page(two):
    looks, runs = Renewal(60, print), runs_lib.read(two)
    return Page(render.page(runs, [looks.at(run) for run in runs]))


def test_nothing_is_loaded_from_elsewhere_and_every_picture_has_words(page):
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not re.search(r"url\((?!#|data:)", attributes.get("style") or "")
    (policy,) = (a["content"] for a in page.of("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert len(page.of("img")) > 60
    assert all(a["alt"] for a in page.of("img"))
    assert all(a["aria-label"] for a in page.of("div") if a.get("role") == "img")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    heads = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert heads[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(heads))
    points = [a for a in page.of("circle") if a.get("role") == "option"]
    assert len(points) == 60
    assert all("class " in a["aria-label"] for a in points)


def test_tables_behind_curves_are_the_records(page):
    assert page.table("Contrastive loss") == [
        ["epoch", "first", "second"],
        ["0.5", "6.5", "6.5"],
        ["1.5", "not a number", ""],
    ]
    assert page.table("kNN accuracy, per cent")[1:] == [["0", "50", "50"], ["2", "75", ""]]
    assert page.table("Images per second")[2] == ["1.5", "999", ""]
    summary = {row[0]: row[1:] for row in page.table("Runs at a glance")}
    assert summary["state"] == ["epoch 2 of 2, finished", "epoch 0.5 of 2, step 11"]
    assert summary["kNN, last"] == ["75.00 %", ""]
    assert summary["kNN, raw pixels"] == ["74.00 %", "74.00 %"]
    spike = ["20", "spike", "grad norm: 77, indices: 0, 1, 2, 3, 4, ..."]
    assert page.table("What first reported on the way")[1] == spike
    assert page.table("Results of knn, first")[1] == ["trained", "20", "61.25 %"]


def test_settings_that_differ_and_a_file_that_repeats_a_run(page, two, tmp_path):
    assert page.table("Settings in which the runs differ") == [
        ["setting", "first", "second"],
        ["seed", "0", "3"],
        ["momentum", "0.99", "0.9"],
        ["lr", "0.06", "0.01"],
    ]
    run = runs_lib.read(two)[1]
    found: dict = {}
    exec(settings.recipe_file(run.config), found)
    assert found["get_config"]() == run.config
    assert settings.repeat(run).same_code
    starts = {row[0]: row[1:] for row in page.table("Starts of first")}
    assert starts["jax"] == [jax.__version__]
    assert starts["devices"] == ["8 x cpu"]


def test_images_that_are_gone_leave_a_page_that_says_so(two, tmp_path):
    gone = tiny(dataset="folder", data_dir=str(tmp_path / "none"), eval_split="")
    run = runs_lib.read([write_run(tmp_path / "run", gone, None)])[0]
    look = Renewal(60, print).at(run)
    text = render.page([run], [look])
    assert "run: view pairs, as " in text
    assert "there is no checkpoint" in text
    assert "Map of" not in text
    look = Renewal(0, print).at(runs_lib.read(two)[0])
    assert (look.embedding, look.missing) == (None, {})
    assert Page(text).table("Settings that are not at their defaults")[1][0] == "dataset"


def test_many_records_are_averaged_and_a_batch_that_changed_keeps_epochs():
    x, y, averaged = curves.thin(np.arange(1000.0), np.arange(1000.0) ** 2, 100)
    assert (len(x), averaged) == (100, 10)
    np.testing.assert_allclose(y[3], np.mean(np.arange(30, 40) ** 2))
    starts = [
        {"step": 0, "event": "start", "steps_per_epoch": 20, "schedule_shift": 0, "examples": 1},
        {"step": 40, "event": "start", "steps_per_epoch": 10, "schedule_shift": -20, "examples": 1},
    ]
    run = runs_lib.Run("run", epath.Path("run"), tiny(), starts, {})
    np.testing.assert_allclose(run.epochs([0, 20, 40, 45]), [0, 1, 2, 2.5])


def test_the_published_course_stands_beside_the_demo_alone():
    demo, other = load("cifar10:demo"), load("cifar10:symmetric")
    assert published.curve(other) is None
    assert published.curve(load("cifar10:cpu")) is None
    start = {
        "step": 0,
        "event": "start",
        "steps_per_epoch": 97,
        "schedule_shift": 0,
        "examples": 50000,
    }
    records = [start, {"step": 97, "loss": 7.0}, {"step": 485, "knn": 0.4}]
    run = runs_lib.Run("demo", epath.Path("demo"), demo, records, {})
    loss, knn = curves.panels([run])
    assert charts.table(knn, ["demo"])[1][:3] == [
        ["1", "", "32"],
        ["5", "40", "38"],
        ["10", "", "48"],
    ]
    assert charts.table(loss, ["demo"])[1][:2] == [["0.5", "", "6.96"], ["1", "7", ""]]
    assert "published" in charts.describe(knn, ["demo"])


def test_rounding_is_not_drawn_large():
    start = {"step": 0, "event": "start", "steps_per_epoch": 5, "schedule_shift": 0, "examples": 1}
    kept = [start, {"step": 5, "momentum": 0.99}, {"step": 10, "momentum": 0.9900002}]
    (panel,) = curves.panels([runs_lib.Run("run", epath.Path("run"), tiny(), kept, {})])
    assert {"0.96", "1.02"} <= set(re.findall(r">([\d.]+)</text>", charts.draw(panel, "m")))


def test_a_map_keeps_groups_together():
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(8)[:4], 15, 0)
    vectors = (centres + 0.05 * rng.normal(size=centres.shape)).astype(np.float32)
    places, method = embedding.flatten(vectors)
    assert "t-SNE" in method
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert np.array_equal(apart.argmin(1) // 15, np.arange(60) // 15)
    assert embedding.flatten(vectors[:5])[0].shape == (5, 2)


def test_command_line(two, tmp_path):
    def report(*words):
        command = [sys.executable, "-m", "moco_jax.report", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    (tmp_path / "empty").mkdir()
    shutil.copytree(two[1], tmp_path / "torn")
    (tmp_path / "torn/metrics.jsonl").write_text('{"step": \n{}\n')
    ended = report(str(tmp_path / "torn"))
    assert ended.returncode == 0, ended.stderr
    (line,) = (x for x in ended.stdout.splitlines() if "metrics.jsonl" in x)
    assert line.startswith("left out: torn: ")
    assert "2 of 2 records, as of the first of them line 1 of metrics.jsonl is damaged" in line
    assert line.removeprefix("left out: ") in html.unescape(
        (tmp_path / "torn/report.html").read_text()
    )
    with pytest.raises(UserError, match="is no workdir"):
        runs_lib.read([two[0], str(tmp_path / "empty")])


def test_a_watched_page_is_for_this_machine_and_renews_itself():
    state = [1]
    watch = Watch(lambda version: f"{version} {state[0]}", lambda: state[0])
    try:
        host, port = watch._server.server_address[:2]
        assert host == "127.0.0.1"

        def get(path="", **headers):
            request = urllib.request.Request(watch.address + path, headers=headers)
            return urllib.request.urlopen(request, timeout=5).read().decode()

        first = get("version")
        assert get() == f"{first} 1"
        assert not watch.look()
        state[0] = 2
        assert watch.look()
        assert get("version") != first
        assert get() == f"{get('version')} 2"
        for path, headers in (("none", {}), ("", {"Host": "elsewhere.example:80"})):
            with pytest.raises(urllib.error.HTTPError):
                get(path, **headers)
        with socket.socket() as other, pytest.raises(OSError, match="refused"):
            other.connect(("127.0.0.2", port))
    finally:
        watch.close()


def test_requests_that_do_not_end_hold_few_threads_and_are_cut_off(monkeypatch):
    monkeypatch.setattr(watch_lib, "SECONDS", 2.0)
    before, answer = threading.active_count(), watch_lib.Server.finish_request
    open_now, most, guard = set(), [0], threading.Lock()

    def counted(server, request, address):
        with guard:
            open_now.add(address)
            most[0] = max(most[0], len(open_now))
        try:
            answer(server, request, address)
        finally:
            with guard:
                open_now.discard(address)

    monkeypatch.setattr(watch_lib.Server, "finish_request", counted)
    watch = Watch(lambda version: "page", lambda: 1)
    halves = [
        b"",
        b"G",
        b"GET / HTTP/1.1\r\n",
        b"GET /version HTTP/1.1\r\nHost: 127",
        b"POST / HTTP/1.1\r\nA: b\r\n",
    ]
    try:
        address = watch._server.server_address[:2]
        others = []
        for number in range(300):
            others.append(socket.create_connection(address, timeout=5))
            others[-1].sendall(halves[number % len(halves)])
        time.sleep(0.1)
        assert threading.active_count() - before <= 2 * watch_lib.AT_ONCE + 2  # each with its alarm
        assert 1 < most[0] <= watch_lib.AT_ONCE
        for other in others:
            with contextlib.suppress(ConnectionResetError):
                while other.recv(1000):
                    pass
            other.close()
        deadline = time.monotonic() + 5
        while threading.active_count() > before + 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert threading.active_count() <= before + 1
        assert urllib.request.urlopen(watch.address, timeout=5).read() == b"page"
    finally:
        watch.close()

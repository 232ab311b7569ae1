"""A stand-in of the package wandb: it notes what it is told, and goes wrong where it is asked to.

`put` lays it into a folder, which a test puts on the paths of Python. What it is told it appends to
the file FAKE_CALLS, a line of JSON each. FAKE_FAULT is 'WHERE HOW': `init`, `log` or `finish`, and
`raise`, `hang` or `die`. As the real one, it takes no step that is before its last.
"""

import json

SOURCE = """
import json, os, sys, time

def note(*what):
    with open(os.environ["FAKE_CALLS"], "a") as file:
        file.write(json.dumps(what) + "\\n")

def act(where):
    print("chatter on", where, flush=True)
    print("chatter on", where, file=sys.stderr, flush=True)
    there, how = os.environ.get("FAKE_FAULT", "- -").split()
    if where == there:
        if how == "raise":
            raise OSError(28, "No space left on device")
        if how == "hang":
            time.sleep(1000)
        if how == "die":
            print("fatal: it was shot", file=sys.stderr, flush=True)
            os._exit(9)

class Settings:
    model_fields = {"silent": None, "console": None}
    def __init__(self, **settings):
        self.settings = settings

class Image:
    def __init__(self, image):
        self.size = image.size

class Table:
    def __init__(self, columns, rows):
        self.rows = rows

class Config(dict):
    def update(self, settings, allow_val_change):
        note("settings", settings)

class Summary(dict):
    def __setitem__(self, name, value):
        note("summary", name, value)

class Run:
    offline, resumed, starting_step, url = True, False, 0, None
    def __init__(self, id, name, dir):
        self.id, self.step = id or "fake1", 0
        self.dir = f"{dir}/wandb/offline-run-{time.time_ns()}-{self.id}/files"
        os.makedirs(self.dir)
        self.config, self.summary = Config(), Summary()
        note("init", self.id, name)
    def log(self, row, step):
        act("log")
        if step < self.step:
            return note("refused", step)
        self.step = step
        for name, value in row.items():
            shown = getattr(value, "rows", None) or getattr(value, "size", None) or value
            note("log", step, name, shown)
    def finish(self, exit_code):
        act("finish")
        note("finish", exit_code)

def init(project, name, id, resume, dir, settings):
    act("init")
    return Run(id, name, dir)
"""


def put(folder):
    """Make the package in `folder`."""
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb/__init__.py").write_text(SOURCE)


def calls(path, kind):
    """What the stand-in was told of `kind`, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [rest for first, *rest in map(json.loads, lines) if first == kind]

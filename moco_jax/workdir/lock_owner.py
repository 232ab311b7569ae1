"""The owner of a workdir, and the file `lock.json` that names it."""

import dataclasses
import json

from moco_jax.base.text import printable
from moco_jax.workdir import processes

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Owner:
    """The owner of a workdir, as `lock.json` names it.

    Attributes:
        token: a random name for this claim.
        since: when it was made, by the clock of that machine; for people alone.
        process: who made it.
    """

    token: str
    since: str
    process: processes.Process

    def to_bytes(self) -> bytes:
        """Return the owner as one line of JSON, the content of `lock.json`."""
        facts = {"lock": FORMAT, "token": self.token, "since": self.since}
        return (json.dumps(facts | dataclasses.asdict(self.process)) + "\n").encode()

    def __str__(self) -> str:
        """Describe the owner as part of a sentence: whom to look for."""
        host, since = printable(self.process.host), printable(self.since)
        return f"process {self.process.pid} on {host} since {since}"


def parse(content: bytes) -> tuple[str, Owner | None]:
    """Read the token and the owner from the content of `lock.json`.

    Returns:
        the token, '' where there is none, and the owner, None where `content` is damaged or of
        another version.
    """
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return "", None
    if not isinstance(facts, dict) or not isinstance(facts.get("token"), str):
        return "", None
    kinds = {"host": str, "boot": str, "namespace": str, "pid": int, "started": int, "since": str}
    if facts.get("lock") != FORMAT or any(type(facts.get(k)) is not v for k, v in kinds.items()):
        return facts["token"], None
    if not 0 < facts["pid"] <= processes.LARGEST:
        return facts["token"], None
    named = {f.name: facts[f.name] for f in dataclasses.fields(processes.Process)}
    return facts["token"], Owner(facts["token"], facts["since"], processes.Process(**named))

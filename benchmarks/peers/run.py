"""Beside the other tools: requests per second over real sockets, as ratios.

Run ``python benchmarks/peers/run.py``. It makes a virtual environment for each tool,
starts the same application (``shop.py``) under uvicorn with each of them, off and on,
and loads all of them in turn, over and over: the ratio of a round is that of two
neighbours in time, so that a noisy machine disturbs both. It needs ``uv`` on the path
or in this Python, and a package index.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BARE = "nothing"
PEERS = {
    BARE: [],
    "ours: dependency": [str(ROOT)],
    "ours: middleware": [str(ROOT)],
    "waygate": ["waygate[all]"],
    "fastapi-maintenance: env": ["fastapi-maintenance==0.0.5"],
    "fastapi-maintenance: file": ["fastapi-maintenance==0.0.5"],
}
REQUEST = b"GET /items HTTP/1.1\r\nHost: shop.example\r\n\r\n"


def python_of(folder: Path, requirements: list[str]) -> str:
    """Make a virtual environment; return its Python."""
    name = "".join(c if c.isalnum() else "-" for c in requirements[0].split("/")[-1])
    place = folder / name
    python = str(place / "bin" / "python")
    if not place.exists():
        uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "-q", "-p", sys.executable, str(place)], check=True)
        install = [uv, "pip", "install", "-q", "--python", python]
        everything = [*requirements, "fastapi", "uvicorn[standard]"]
        subprocess.run([*install, *everything], check=True)
    return python


@contextlib.contextmanager
def server(python: str, peer: str, mode: str, folder: Path) -> Iterator[int]:
    """Serve the shop; yield its port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder.mkdir()
    environment = {"PEER": peer, "MODE": mode, "FOLDER": str(folder)}
    options = ["--port", str(port), "--log-level", "error", "--app-dir", str(HERE)]
    process = subprocess.Popen(
        [python, "-m", "uvicorn", "shop:app", *options],
        env={**os.environ, **environment, "PYTHONSAFEPATH": "1"},
        cwd=folder,
    )
    try:
        limit = time.monotonic() + 30
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port)),
            ):
                break
            if time.monotonic() > limit or process.poll() is not None:
                sys.exit(f"{peer}, {mode}: the server does not start")
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


async def load(port: int, seconds: float, clients: int, status: bytes) -> float:
    """Send requests one by one on each connection; return how many a second."""
    done = 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 " + status):
                sys.exit(f"not {status.decode()}: {head.splitlines()[0].decode()}")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            done += 1
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return done / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--environments", type=Path, help="keep them here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = options.environments or Path(name) / "environments"
        folder.mkdir(exist_ok=True)
        ports = {}
        for index, (peer, requirements) in enumerate(PEERS.items()):
            python = python_of(folder, requirements or ["fastapi"])
            for mode in ("off",) if peer == BARE else ("off", "on"):
                place = Path(name) / f"{index}-{mode}"
                running = server(python, peer, mode, place)
                ports[peer, mode] = stack.enter_context(running)
        ratios: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds + 1):
            for (peer, mode), port in ports.items():
                bare, rate = (
                    asyncio.run(load(at, options.seconds / 2, options.clients, status))
                    for at, status in (
                        (ports[BARE, "off"], b"200"),
                        (port, b"200" if mode == "off" else b"503"),
                    )
                )
                ratios.setdefault((peer, mode), []).append(rate / bare)
        print(
            f"{'requests per second, of the bare application':46}{'median':>8}  range"
        )
        for (peer, mode), found in ratios.items():
            kept = found[1:]  # The first round warms up.
            middle = statistics.median(kept)
            print(
                f"{peer + ', ' + mode:46}{middle:8.2f}  {min(kept):.2f} to"
                f" {max(kept):.2f}"
            )


if __name__ == "__main__":
    main()

"""The program ``docker`` without an engine: containers are processes with a stand-in for TEI.

Run as ``python dockerstandin.py FOLDER WORDS...``; in the folder lie ``calls.jsonl``, its answers'
changes ``ways.json``, and a file for each container.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SERVER = Path(__file__).with_name("teistandin.py")


def main(folder: Path, *words: str) -> int:
    with (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps(words) + "\n")
    ways = json.loads((folder / "ways.json").read_text())
    verb = " ".join(words[:2]) if words[0] == "image" else words[0]
    if verb == ways.get("hangs"):
        time.sleep(600)
    if verb in ways.get("fails", {}):
        return fail(ways["fails"][verb])
    if verb == "pull":
        (folder / "pulled").touch()
    if verb == "image inspect":
        if not (ways.get("pulled", True) or (folder / "pulled").exists()):
            return fail("Error: No such image")
        print(f"{words[-1].partition(':')[0]}@sha256:0123")
    if verb == "run":
        name = words[words.index("--name") + 1]
        if name.endswith(ways.get("not_started", "-none")):
            return fail("docker: Error response from daemon: no.\n\nRun 'docker run --help'")
        (folder / name).write_text(json.dumps(start(ways)))
        print("0123456789abcdef")
    elif verb in {"port", "inspect", "logs", "rm"}:
        name = words[1] if verb == "port" else words[-1]
        if not (folder / name).exists():
            return fail(f"Error response from daemon: No such container: {name}")
        of_one(verb, folder / name, ways)
    return 0


def start(ways: dict) -> dict:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(SERVER), str(port), str(ways.get("ready_after", 0))]
    if ways.get("exits"):
        command = ["true"]
    out = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    if ways.get("exits"):
        process.wait()
    return {"pid": process.pid, "port": port}


def of_one(verb: str, path: Path, ways: dict) -> None:
    container = json.loads(path.read_text())
    if verb == "port":
        print(f"127.0.0.1:{container['port']}")
    elif verb == "inspect":
        print("false" if ways.get("exits") else "true")
    elif verb == "logs":
        print("INFO Starting")
        print("Error: Could not create backend", file=sys.stderr)
    else:
        path.unlink()
        try:
            os.kill(container["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + 5
        while is_running(container["pid"]) and time.monotonic() < deadline:
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))

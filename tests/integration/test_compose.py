"""compose.yaml: what its settings promise, and its CPU profile brought up for real."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import httpx
import numpy as np
import pytest
import yaml
import zstandard

import headrace
from headrace.transport.system import leftovers
from headrace_bench.tei.docker import CPU, FLAGS, PREFIXES, REGISTRY, VERSION
from headrace_launcher.ports import free_port

ROOT = Path(__file__).parents[2]
FILE = ROOT / "compose.yaml"
COMPOSE = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
ARGUMENTS = dict(re.findall(r"^ARG (\w+)=(\S+)", DOCKERFILE, flags=re.MULTILINE))
BIN = Path(sys.executable).parent
DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")

TEIS = ("tei", "tei-cpu")  # in images of others
OURS = [name for name in SERVICES if name not in TEIS]

every_service = pytest.mark.parametrize("name", SERVICES)
every_service_of_ours = pytest.mark.parametrize("name", OURS)
every_pair = pytest.mark.parametrize(
    ("server", "client"), [("server", "client"), ("server-cpu", "client-cpu")]
)


def plain(text):
    """A setting as it is where no variable is set."""
    return DEFAULT.sub(r"\1", text)


def mounts(name):
    return {mount["target"]: mount for mount in SERVICES[name]["volumes"]}


def started(profile):
    """The services that ``up`` starts under a profile."""
    return {name for name, service in SERVICES.items() if profile in service["profiles"]}


def test_it_passes_the_schema():
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_up_starts_the_gpus_services_and_the_cpu_profile_its_own():
    # A service without a profile would be started under each.
    assert all(service.get("profiles") for service in SERVICES.values())
    assert (ROOT / ".env").read_text(encoding="utf-8").splitlines()[-1] == "COMPOSE_PROFILES=gpu"
    assert started("gpu") == {"build", "server", "gateway"}
    assert started("cpu") == {"build-cpu", "server-cpu", "gateway-cpu"}
    assert started("tei") == {"tei"}
    assert started("tei-cpu") == {"tei-cpu"}


@every_service
def test_what_a_service_depends_on_is_in_each_of_its_profiles(name):
    for other in SERVICES[name].get("depends_on", {}):
        assert set(SERVICES[name]["profiles"]) <= set(SERVICES[other]["profiles"])


def test_docker_reads_the_profiles_like_that():
    known = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    if not known or known.returncode:
        pytest.skip("docker compose is not installed")

    def services(*options):
        command = ["docker", "compose", *options, "config", "--services"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COMPOSE_")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
        return set(done.stdout.decode().split())

    assert services() == {"build", "server"}
    assert services("--profile", "cpu") == {"build-cpu", "server-cpu", "gateway-cpu"}


@every_service
def test_a_gpu_is_asked_for_where_the_image_has_its_libraries_and_nowhere_else(name):
    service = SERVICES[name]
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
    assert bool(devices) == (not name.endswith("-cpu"))
    assert service["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@every_service_of_ours
def test_the_image_is_the_one_that_is_built(name):
    service = SERVICES[name]
    target = service["build"]["target"]
    assert service["image"] == f"headrace:{target}"
    assert (target == "gpu") == (not name.endswith("-cpu"))


@pytest.mark.parametrize(("name", "prefix"), [("tei", PREFIXES["8.0"]), ("tei-cpu", CPU)])
def test_tei_is_the_one_that_the_benchmark_would_start(name, prefix):
    service = SERVICES[name]
    assert "build" not in service
    assert plain(service["image"]) == f"{REGISTRY}:{prefix}{VERSION}"
    assert plain(service["command"][1]) == "sentence-transformers/all-MiniLM-L6-v2"
    assert service["command"][2:] == list(FLAGS)
    assert plain(service["ports"][0]) == "127.0.0.1:8090:80"
    assert service["environment"]["HUGGINGFACE_HUB_CACHE"] in mounts(name)
    assert mounts(name)["/data"]["read_only"]


def test_every_image_of_tei_is_in_the_documentation():
    text = (ROOT / "docker/README.md").read_text(encoding="utf-8")
    for capability, prefix in PREFIXES.items():
        assert capability in text
        assert f"`{prefix}{VERSION}`" in text


def test_every_base_image_is_one_version():
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)
    assert bases == ["${TRITON_IMAGE}", "${PYTHON_IMAGE}"]
    for name in ("TRITON_IMAGE", "PYTHON_IMAGE"):
        tag = ARGUMENTS[name].rsplit("/", 1)[-1].partition(":")[2]
        assert re.match(r"\d+\.\d+", tag), ARGUMENTS[name]


@every_service
def test_no_service_may_do_or_take_more_than_it_must(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name in TEIS else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("read_only", False) == name.endswith("-cpu")
    assert "privileged" not in service
    assert re.fullmatch(r"\d+g", plain(service["mem_limit"]))
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


@every_pair
def test_a_server_and_its_client_can_open_each_others_memory(server, client):
    for name in (server, client):
        assert SERVICES[name]["ipc"] == SERVICES[name]["pid"] == "host"
        # The id of an init process would not be the first of its namespace: podman refuses.
        assert "init" not in SERVICES[name]
    assert SERVICES[server]["user"] == SERVICES[client]["user"]


@every_pair
def test_a_server_is_asked_where_it_listens(server, client):
    command = SERVICES[server]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    listens = {options[f"--{name}-port"] for name in ("http", "grpc", "metrics")}
    assert {port.rsplit(":", 1)[-1] for port in SERVICES[server]["ports"]} == listens
    assert SERVICES[client]["environment"]["HEADRACE_SERVER"] == (
        f"{server}:{options['--grpc-port']}"
    )
    assert f":{options['--http-port']}/v2/health/ready" in SERVICES[server]["healthcheck"]["test"]


@pytest.mark.parametrize(
    ("server", "gateway"), [("server", "gateway"), ("server-cpu", "gateway-cpu")]
)
def test_a_gateway_asks_the_server_and_is_asked_where_it_listens(server, gateway):
    port = SERVICES[gateway]["command"][-1]
    assert plain(SERVICES[gateway]["ports"][0]) == f"127.0.0.1:{port}:{port}"
    assert f":{port}/health" in SERVICES[gateway]["healthcheck"]["test"]
    told = SERVICES[gateway]["environment"]["HEADRACE_SERVER"]
    options = SERVICES[server]["command"]
    assert told == f"{server}:{options[options.index('--grpc-port') + 1]}"


@every_service_of_ours
def test_what_is_mounted_is_what_the_image_expects(name):
    if name.startswith("gateway"):  # all that it knows it asks the server for
        assert "volumes" not in SERVICES[name]
        return
    repository = mounts(name)["/models"]
    assert "HEADRACE_REPOSITORY=/models" in DOCKERFILE
    assert (ROOT / plain(repository["source"])).is_dir()
    assert repository.get("read_only", False) == (not name.startswith("build"))
    if data := mounts(name).get("/data"):
        assert data.get("read_only", False) == (not name.startswith("client"))
    cached = SERVICES[name]["environment"].get("XDG_CACHE_HOME")
    assert (cached == "/cache") == ("/cache" in mounts(name))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("build", ["--engine", "HEADRACE_REPOSITORY"]),
        ("serve", ["--listen", "--http-port", "--grpc-port", "--metrics-port"]),
        ("embed", ["HEADRACE_MODEL", "HEADRACE_SERVER", "HEADRACE_REPOSITORY"]),
        ("gateway", ["--listen", "--port", "HEADRACE_SERVER", "HEADRACE_API_KEY"]),
    ],
)
def test_the_program_knows_the_options_and_variables_that_are_used(command, words):
    shown = subprocess.run(
        [sys.executable, "-m", "headrace", command, "--help"],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        check=True,
    ).stdout.decode()
    for word in words:
        assert word in shown


@dataclass
class Stack:
    """compose.yaml under a name of its own, with folders and ports of its own."""

    engine: str
    folder: Path
    model: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        user = os.getuid() or 1000
        for name in ("models", "data"):
            (self.folder / name).mkdir()
        shutil.copytree(self.model, self.folder / "data/all-MiniLM-L6-v2")
        for path in [self.folder, *self.folder.rglob("*")]:
            os.chown(path, user, -1)
        self.folder.chmod(0o755)
        self.ports = {
            name: free_port("127.0.0.1") for name in ("HTTP", "GRPC", "METRICS", "GATEWAY")
        }
        self.environment |= os.environ | {
            "HEADRACE_UID": str(user),
            "HEADRACE_MODEL": "/data/all-MiniLM-L6-v2",
            "HEADRACE_DATA": str(self.folder / "data"),
            "HEADRACE_REPOSITORY": str(self.folder / "models"),
        }
        self.environment |= {f"HEADRACE_{k}_PORT": str(v) for k, v in self.ports.items()}
        # Without a service manager podman must be told what to do without it, and not to raise
        # limits beyond those of this process.
        if self.engine == "podman" and not Path("/run/systemd/system").exists():
            self.environment.setdefault("CONTAINERS_CONF", str(self._podman_settings()))

    def _podman_settings(self):
        limits = []
        for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
            most = resource.getrlimit(number)[1]
            most = 1 << 14 if most < 0 else min(most, 1 << 14)
            limits.append(f'"{name}={most}:{most}"')
        lines = ["[containers]", f"default_ulimits = [{', '.join(limits)}]"]
        lines += ["[engine]", 'cgroup_manager = "cgroupfs"']
        if shutil.which("runc"):  # crun does not do with cgroups of both versions side by side
            lines.append('runtime = "runc"')
        path = self.folder / "containers.conf"
        path.write_text("\n".join(lines))
        return path

    def run(self, *command, profile="", check=True, **options):
        environment = dict(self.environment)
        if profile:
            environment["COMPOSE_PROFILES"] = profile
        done = subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=1800,
            check=False,
            **options,
        )
        text = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == 0 or not check, text[-4000:]
        return done

    def compose(self, *words, profile="cpu", **options):
        """Runs compose on the file as it is.

        podman-compose passes over ``ipc``, and adds --profile to what .env says, where Docker's
        replaces it.
        """
        if self.engine == "docker":
            command = ["docker", "compose", "-p", "headrace-test", "--profile", profile]
            return self.run(*command, *words, **options)
        command = [_podman_compose(), "-p", "headrace-test", "--podman-run-args=--ipc=host"]
        return self.run(*command, *words, profile=profile, **options)

    def base_image(self):
        """The image that the CPU's is built on; made here where none can be fetched."""
        if given := os.environ.get("PYTHON_IMAGE"):
            return given
        usual, own = ARGUMENTS["PYTHON_IMAGE"], "localhost/headrace-test-base:bookworm"
        if self.run(self.engine, "image", "inspect", own, check=False).returncode == 0:
            return own
        if self.run(self.engine, "pull", "--quiet", usual, check=False).returncode == 0:
            return usual
        if os.getuid() or not shutil.which("debootstrap"):
            pytest.skip(f"{usual} cannot be pulled, and debootstrap needs root and to be installed")
        packages = "python3,python3-venv,libpython3.11,ca-certificates"
        with tempfile.TemporaryDirectory(dir=self.folder) as root:
            command = ["debootstrap", "--variant=minbase", f"--include={packages}"]
            self.run(*command, "bookworm", root)
            # It trusts whom this machine trusts, or a proxy of its network would be a stranger.
            trusted = Path("etc/ssl/certs/ca-certificates.crt")
            if (Path("/") / trusted).exists():
                shutil.copy(Path("/") / trusted, Path(root) / trusted)
            with tempfile.TemporaryFile(dir=self.folder) as archive:
                subprocess.run(["tar", "-C", root, "-c", "."], stdout=archive, check=True)
                archive.seek(0)
                command = [self.engine, "import", "-", own]
                subprocess.run(command, stdin=archive, env=self.environment, check=True)
        return own

    def wait_until_ready(self, seconds=120):
        url = f"http://127.0.0.1:{self.ports['HTTP']}/v2/health/ready"
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urlopen(url, timeout=5) as answer:
                    assert answer.status == HTTPStatus.OK
                    return
            except (URLError, ConnectionError, TimeoutError):
                if time.monotonic() > deadline:
                    said = self.compose("logs", check=False)
                    pytest.fail(f"{url} does not answer; {said.stdout.decode()[-4000:]}")
                time.sleep(0.2)


def _podman_compose():
    return shutil.which("podman-compose", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")


def _engine():
    def works(*command):
        if not shutil.which(command[0]):
            return False
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if works("docker", "info") and works("docker", "compose", "version"):
        return "docker"
    return "podman" if works("podman", "version") and _podman_compose() else None


@pytest.fixture(scope="module")
def stack(tmp_path_factory, model_folder):
    """The CPU profile, built from these sources and up."""
    engine = _engine()
    if engine is None:
        pytest.skip("neither docker compose with its engine nor podman with podman-compose is here")
    stack = Stack(engine, tmp_path_factory.mktemp("compose"), model_folder)
    stack.environment["PYTHON_IMAGE"] = stack.base_image()
    stack.compose("build", "build-cpu")
    try:
        # One by one: podman-compose knows the order of services only from podman 4.6 on.
        stack.compose("run", "--rm", "build-cpu")
        stack.compose("up", "--detach", "--no-build")
        stack.wait_until_ready()
        yield stack
    finally:
        stack.compose("down", "--volumes", check=False)


@pytest.mark.containers
def test_a_client_in_a_container_writes_what_one_outside_writes(stack, tmp_path):
    lines = (ROOT / "examples/passages.jsonl").read_bytes()
    source = stack.folder / "data/x.jsonl.zst"
    source.write_bytes(zstandard.compress(lines))
    before = set(leftovers())
    dependencies = [] if stack.engine == "docker" else ["--no-deps"]
    run = stack.compose(
        *("run", "--rm", "-T", *dependencies, "client-cpu"),
        *("embed", "/data/x.jsonl.zst", "-o", "/data/x.npy", "--report", "/data/x.json"),
        profile="client-cpu",
    )
    vectors = np.load(stack.folder / "data/x.npy")
    headrace.embed(source, tmp_path / "x.npy", model=str(stack.model), repository=tmp_path / "m")
    wanted = np.load(tmp_path / "x.npy")
    assert vectors.shape == wanted.shape == (lines.count(b"\n"), 384)
    assert (vectors * wanted).sum(axis=1).min() > 0.9999
    assert (stack.folder / "data/x.npy").stat().st_uid == int(stack.environment["HEADRACE_UID"])
    # Shared memory between the two containers, and nothing of it left.
    report = yaml.safe_load((stack.folder / "data/x.json").read_text())
    assert report["transport"] == "system", run.stderr.decode()
    assert set(leftovers()) <= before


@pytest.mark.containers
def test_the_health_check_succeeds_in_the_container(stack):
    check = SERVICES["server-cpu"]["healthcheck"]["test"]
    stack.compose("exec", "-T", "server-cpu", "sh", "-c", check)


@pytest.mark.containers
def test_the_gateway_answers(stack):
    url = f"http://127.0.0.1:{stack.ports['GATEWAY']}"
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = httpx.post(f"{url}/embed", json={"inputs": "hello"}, timeout=10)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code == 200:
            break
        assert time.monotonic() < deadline
        time.sleep(1)
    assert len(answer.json()[0]) == 384


@pytest.mark.containers
def test_a_clients_exit_code_and_error_are_headraces(stack):
    dependencies = [] if stack.engine == "docker" else ["--no-deps"]
    done = stack.compose(
        *("run", "--rm", "-T", *dependencies, "client-cpu"),
        *("embed", "/data/nowhere.jsonl", "-o", "/data/y.npy"),
        profile="client-cpu",
        check=False,
    )
    assert done.returncode == 2
    assert "/data/nowhere.jsonl" in (done.stdout + done.stderr).decode()

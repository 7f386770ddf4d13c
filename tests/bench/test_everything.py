"""``make bench``: what can run runs, what cannot is told, what fails is not hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import MachineError
from headrace_bench import everything
from headrace_bench.everything import Step, run_all, steps


def names(found):
    return [step.name for step in found if not step.missing]


def missing(found):
    return {step.name: step.missing for step in found if step.missing}


def test_what_the_machine_lacks_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(everything, "find_gpus", list)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = list(steps(Path("there")))
    assert names(found) == [
        *("feed", "peers", "engineprofile"),
        *("memory", "commits", "longrun", "serving", "stalls"),
    ]
    assert missing(found) == {
        "TEI among the peers": "docker is not installed; or start TEI and run headrace bench peers "
        "--tei URL",
        "gpu": "no NVIDIA GPU was found",
    }
    assert found[1].arguments == ("-m", "headrace", "bench", "peers", "--output", "there")


def test_what_is_there_is_used(monkeypatch, tmp_path):
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\n[ $1 = info ]\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(everything, "find_gpus", lambda: ["a card"])
    found = list(steps(Path("there")))
    assert missing(found) == {}
    assert "gpu" in names(found)
    assert found[1].arguments[-2:] == ("--tei", "docker")
    docker.write_text("#!/bin/sh\necho cannot connect >&2\nexit 1\n")
    assert missing(steps(Path("there"))) == {
        "TEI among the peers": "docker does not answer: cannot connect"
    }

    def broken():
        raise MachineError("a GPU does not answer")

    monkeypatch.setattr(everything, "find_gpus", broken)
    assert missing(steps(Path("there")))["gpu"] == "a GPU does not answer"


def test_one_that_fails_does_not_stop_the_others(capsys):
    found = [Step("a", ("x",)), Step("b", ("y",)), Step("c", (), "no luck"), Step("d", ("z",))]
    ran = []

    def start(command):
        ran.append(command[1:])
        return 3 if command[1:] == ["y"] else 0

    assert run_all(found, start) == 1
    assert ran == [["x"], ["y"], ["z"]]
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        "measured:   a, d",
        "left out:   c: no luck",
        "FAILED:     b, exit code 3",
    ]
    found = [Step("p", ("m", "--tei", "docker"), instead=("m",))]
    ran.clear()
    assert run_all(found, lambda words: ran.append(words[1:]) or 4 * ("docker" in words)) == 0
    assert ran == [["m", "--tei", "docker"], ["m"]]
    said = capsys.readouterr().out
    assert "measured:   p" in said
    assert "left out:   p with --tei docker: failed with exit code 4" in said
    found = [Step("a", ("x",)), Step("d", ("z",))]
    assert run_all(found, start, only=["a"]) == 0
    assert "left out:   d: not asked for" in capsys.readouterr().out


def test_a_name_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        everything.main(["--only", "speed"])
    assert "no benchmark speed; there are" in capsys.readouterr().err

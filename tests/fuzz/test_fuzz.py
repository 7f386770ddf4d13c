"""The short form of fuzzing: the same cases each time. ``make fuzz`` is the long one."""

import pytest

from fuzz import check, driver
from fuzz.made.case import Case
from headrace.errors import DamagedInputError

CASES = 120
SECONDS = 8  # on a slow machine fewer cases are run, not more time taken


@pytest.mark.parametrize("target", check.TARGETS)
def test_target(target, tmp_path):
    outcome = driver.run(target, first=0, cases=CASES, seconds=SECONDS, kept=tmp_path)
    assert outcome.cases
    assert not outcome.failures, "\n".join(map(str, outcome.failures))


@pytest.mark.parametrize("target", check.TARGETS)
def test_a_seed_makes_one_case(target):
    cases = [check.case_of(target, seed) for seed in range(30)]
    assert cases == [check.case_of(target, seed) for seed in range(30)]
    assert len({case.data for case in cases}) > 10


@pytest.mark.parametrize("target", check.TARGETS)
def test_some_cases_are_sound_and_some_damage_is_sure_to_be_noticed(target):
    cases = [check.case_of(target, seed) for seed in range(100)]
    assert any(case.sound for case in cases)
    assert any(case.noticed for case in cases) == (target in ("gzip", "zstd", "parquet"))


FAULTS = {
    "raise ValueError('seen')": "ValueError: seen",
    "os.abort()": "killed by SIGABRT",
    "ctypes.string_at(0)": "killed by SIGSEGV",
    "ctypes.PyDLL(None).sleep(60)": "it hangs",  # with the interpreter's lock held
    "os._exit(7)": "exit status 7",
    "bytes(worker.ADDRESS_SPACE)": "MemoryError",
}


@pytest.mark.parametrize("code", FAULTS)
def test_faults_are_named_and_kept(code, tmp_path):
    worker = f"""
import ctypes, os
from fuzz import worker
def check(case, seed, folder):
    if seed == 3:
        {code}
worker.CASE_SECONDS, worker.check = 1, check
worker.main()
"""
    outcome = driver.run("text", first=0, cases=6, seconds=60, kept=tmp_path, worker=("-c", worker))
    (failure,) = outcome.failures
    assert (outcome.cases, failure.seed) == (6, 3)
    assert FAULTS[code] in failure.fault
    assert failure.file.read_bytes() == check.case_of("text", 3).data
    driver.replay(failure.file)


def test_replay_of_other_bytes(tmp_path, capsys):
    file = tmp_path / "zstd-5-a.jsonl.zst"
    file.write_bytes(b"(\xb5/\xfd and no more")
    driver.replay(file)
    assert "not the bytes of that seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("rows", "row 1 is missing"),
        ("texts", "row 0"),
        ("errors", "damage"),
    ],
)
def test_wrong_readings_are_noticed(fault, match, tmp_path, monkeypatch):
    read = check.read_path

    def wrong(*arguments, **options):
        reading = read(*arguments, **options)
        if fault == "rows":
            reading.rows.pop()
        elif fault == "texts":
            reading.rows[0] = (1, "other", None)
        else:
            reading.error = DamagedInputError("x", file="a", offset=0)
        return reading

    case = Case(name="a.txt", kind="text", data=b"a\nb\n")
    check.check(case, 0, tmp_path)
    monkeypatch.setattr(check, "read_path", wrong)
    with pytest.raises(AssertionError, match=match):
        check.check(case, 0, tmp_path)

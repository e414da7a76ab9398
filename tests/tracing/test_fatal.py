import json
import logging
import os
import stat
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from vllm_vitals.tracing.fatal import file as fatal_file
from vllm_vitals.tracing.fatal import watch as fatal
from vllm_vitals.tracing.fatal.kinds import KINDS, kinds_of

NONE = dict.fromkeys((kind.name for kind in KINDS), 0)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class EngineDeadError(Exception):
    """As vLLM names it."""


def record(message, *arguments, error=None, level=logging.ERROR, name="vllm.v1"):
    info = (type(error), error, None) if error is not None else None
    return logging.LogRecord(name, level, "core.py", 12, message, arguments, info)


def chained(outer, cause):
    outer.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        (record("x", error=OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), ["cuda_oom"]),
        (record("x", error=chained(RuntimeError("step failed"), OutOfMemoryError("no"))), ["cuda_oom"]),
        (record("x", error=RuntimeError("CUDA error: out of memory")), ["cuda_oom"]),
        (record("Failed to load model - not enough GPU memory. Try lowering"), ["cuda_oom"]),
        (record("x", error=MemoryError()), ["host_oom"]),
        (record("x", error=OSError(12, "Cannot allocate memory")), ["host_oom"]),
        (
            record("Worker proc %s died unexpectedly (exit code: %s), shutting down executor.", "W-0", -9),
            ["host_oom", "worker_dead"],
        ),
        (
            record("Worker proc %s died unexpectedly (exit code: %s), shutting down executor.", "W-0", 1),
            ["worker_dead"],
        ),
        (record("RayWorkerProc rank=%s died unexpectedly, shutting down executor.", [1]), ["worker_dead"]),
        (record("EngineCore encountered a fatal error.", error=ValueError("x")), ["engine_dead"]),
        (
            record("EngineCore encountered a fatal error.", error=OutOfMemoryError("CUDA out of memory")),
            ["cuda_oom", "engine_dead"],
        ),
        (record("AsyncLLM output_handler failed.", error=EngineDeadError()), ["engine_dead"]),
        (
            record("[shutdown] MPClient: engine core exited unexpectedly; starting cleanup", level=logging.WARNING),
            ["engine_dead"],
        ),
        (record("x", error=RuntimeError("CUDA error: an illegal memory access was encountered")), ["cuda_error"]),
        (record("x", error=RuntimeError("NCCL error: unhandled system error")), ["nccl_error"]),
        (
            record("EngineCore failed to start.", error=ValueError("No available memory for the cache blocks. Try")),
            ["too_little_memory", "start_failed"],
        ),
        (record("Engine core initialization failed. See root cause above."), ["start_failed"]),
        (record("Worker proc W-0 is slow"), []),
        (record("CUDA out of memory is handled", level=logging.WARNING), []),
        (record("CUDA out of memory, said a prompt", level=logging.INFO), []),
        (record("x", error=MemoryError("Not enough space in the data buffer")), []),
        (record("Request failed", error=ValueError("max_tokens too large")), []),
    ],
)
def test_kinds_are_recognised_by_what_vllm_and_torch_say(given, kinds):
    assert kinds_of(given) == kinds


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.delenv("_VLLM_VITALS_LIFE", raising=False)
    yield tmp_path / "state"
    fatal.uninstall()
    os.environ.pop("_VLLM_VITALS_LIFE", None)


def lines(state):
    return [json.loads(line) for line in (state / "fatal.jsonl").read_text().splitlines()]


def test_an_end_is_counted_logged_and_names_the_requests_it_took_down(state, caplog):
    fatal.install(state, "api_server")
    fatal.name_requests(lambda: {"r1": None, "r2": None})
    logging.getLogger("vllm.engine").error("failed", exc_info=EngineDeadError("secret prompt"))
    assert fatal.fatal_counts(state) == NONE | {"engine_dead": 1}
    (said,) = [record for record in caplog.records if record.name == "vllm_vitals.fatal"]
    assert said.getMessage() == "engine failure: engine_dead; took down 2 requests"
    assert said.vitals["request_ids"] == ["r1", "r2"]
    assert said.vitals["requests_lost"] == 2
    assert "secret" not in (state / "fatal.jsonl").read_text() + json.dumps(said.vitals)
    assert stat.S_IMODE((state / "fatal.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_stop_that_is_meant_is_no_end_but_a_surprise_is(state):
    fatal.install(state)
    log = logging.getLogger("vllm.engine")
    log.setLevel(logging.INFO)
    log.warning("[shutdown] MPClient: engine core exited unexpectedly; starting cleanup")
    assert fatal.fatal_counts(state)["engine_dead"] == 1
    fatal.uninstall()
    fatal.install(state)
    log.info("[shutdown] API server: shutdown triggered")
    log.error("AsyncLLM output_handler failed.", exc_info=EngineDeadError())
    log.error("Worker proc %s died unexpectedly (exit code: %s), shutting down executor.", "W-0", -9)
    assert sum(fatal.fatal_counts(state).values()) == 1
    log.error("x", exc_info=OutOfMemoryError("CUDA out of memory"))
    assert fatal.fatal_counts(state)["cuda_oom"] == 1


def test_ids_are_bounded_and_their_number_is_not(state, caplog):
    fatal.install(state)
    fatal.record_fatal("engine_dead", [f"r{number}" for number in range(1000)])
    (said,) = [record for record in caplog.records if record.name == "vllm_vitals.fatal"]
    assert (len(said.vitals["request_ids"]), said.vitals["requests_lost"]) == (200, 1000)


def test_the_same_end_said_by_every_request_is_one(state, caplog):
    fatal.install(state)
    for _ in range(50):
        logging.getLogger("vllm.engine").error("failed", exc_info=EngineDeadError())
    assert fatal.fatal_counts(state)["engine_dead"] == 1
    assert len(lines(state)) == 1


def test_a_second_look_at_installing_puts_the_watch_back_once(state):
    watch = fatal.install(state)
    logging.getLogger("vllm").removeHandler(watch)  # as dictConfig does
    assert fatal.install(state) is watch
    assert logging.getLogger("vllm").handlers.count(watch) == 1


PROCESS = """
import logging, sys
from pathlib import Path
from vllm_vitals.tracing.fatal import watch as fatal
fatal.install(Path(sys.argv[1]), sys.argv[2])
logging.getLogger("vllm").error("EngineCore encountered a fatal error.", exc_info=MemoryError())
"""


def processes(state, number, life=None):
    def run(role):
        env = {**os.environ, "_VLLM_VITALS_LIFE": life or f"life-{role}"}
        subprocess.run([sys.executable, "-c", PROCESS, state, str(role)], env=env, check=True, capture_output=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(number)))


def test_several_processes_of_one_server_report_one_end(state):
    processes(state, 4, life="same")
    assert len(lines(state)) == 8
    assert fatal.fatal_counts(state) == NONE | {"host_oom": 1, "engine_dead": 1}, "one of each kind"


def test_counts_outlive_servers_and_add_up(state):
    processes(state, 4)
    assert fatal.fatal_counts(state) == NONE | {"host_oom": 4, "engine_dead": 4}


def test_the_server_says_what_came_before_in_another_process(state, caplog):
    processes(state, 1, life="mine")
    os.environ["_VLLM_VITALS_LIFE"] = "mine"
    fatal.install(state)
    fatal.record_fatal("engine_dead", ["r1"])
    (said,) = [record for record in caplog.records if record.name == "vllm_vitals.fatal"]
    assert said.vitals["fatal_causes"] == ["host_oom"]


def test_what_an_engine_survives_is_counted_again_after_a_while():
    def at(time, kind):
        return {"kind": kind, "life": "a", "time": time, "pid": 1}

    times = (0.0, 30.0, 59.0, 61.0, 200.0)
    assert fatal_file.counts(at(time, "host_oom") for time in times) == NONE | {"host_oom": 3}
    assert fatal_file.counts(at(time, "cuda_oom") for time in times) == NONE | {"cuda_oom": 1}


def test_a_file_that_has_grown_is_folded_without_losing_a_count(state):
    fatal_file.prepare(state)
    for number in range(600):
        for pid in (1, 2):
            report = {"kind": "cuda_oom", "time": float(number), "life": f"life-{number}", "pid": pid, "role": "x" * 40}
            fatal_file.append(state, report)
    before = (state / "fatal.jsonl").stat().st_size
    fatal_file.prepare(state)
    assert (state / "fatal.jsonl").stat().st_size < before / 8
    assert fatal.fatal_counts(state)["cuda_oom"] == 600
    fatal_file.append(state, {"kind": "cuda_oom", "time": 999.0, "life": "life-599", "pid": 3})
    assert fatal.fatal_counts(state)["cuda_oom"] == 600, "the last lives are still told apart"
    assert [path.name for path in state.iterdir()] == ["fatal.jsonl"]


@pytest.mark.parametrize(
    "rubbish", [b"", b"\xff\n", b"[]\n", b'{"kind":"cuda_oom"}\n', b'{"kind":"no","total":3}\n', b'{"kind":']
)
def test_rubbish_in_the_file_is_passed_by(state, rubbish):
    fatal_file.prepare(state)
    (state / "fatal.jsonl").write_bytes(rubbish + b'\n{"kind":"cuda_oom","total":2}\n')
    assert fatal.fatal_counts(state) == NONE | {"cuda_oom": 2}


def test_without_a_file_all_kinds_are_zero(tmp_path):
    assert fatal.fatal_counts(tmp_path) == NONE


def test_a_directory_that_others_can_write_is_not_used(tmp_path, caplog):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert fatal.install(shared) is None
    assert "others can write it" in caplog.text
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert fatal.install(link) is None


def test_the_default_place_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert fatal.state_dir(None) == tmp_path / "vllm-vitals"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert fatal.state_dir(None).name == f"vllm-vitals-{os.getuid()}"
    assert fatal.state_dir(tmp_path) == tmp_path


class Raises:
    def __str__(self):
        raise RuntimeError("no")


def test_nothing_that_is_logged_makes_it_raise_or_recurse(state, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    fatal.install(state)
    fatal.name_requests(lambda: 1 / 0)
    logging.getLogger("vllm").error("%d", "broken")
    logging.getLogger("vllm").error(Raises())
    logging.getLogger("vllm").error("x", exc_info=EngineDeadError())
    (state / "fatal.jsonl").unlink()
    (state / "fatal.jsonl").mkdir()
    logging.getLogger("vllm").error("x", exc_info=OutOfMemoryError())
    fatal.record_fatal("no such kind")


def test_no_lock_is_held_while_others_log(state):
    """A handler that logs from another thread and waits for it would hang if the watch held its lock."""
    program = textwrap.dedent("""
        import logging, sys, threading
        from pathlib import Path
        from vllm_vitals.tracing.fatal import watch as fatal
        class Waits(logging.Handler):
            def emit(self, record):
                other = threading.Thread(target=logging.getLogger("vllm").error, args=("NCCL error: x",))
                other.start()
                other.join()
        fatal.install(Path(sys.argv[1]))
        ours = logging.getLogger("vllm_vitals.fatal")
        ours.addHandler(Waits())
        ours.propagate = False
        logging.getLogger("vllm").error("EngineCore encountered a fatal error.")
    """).replace(
        "def emit(self, record):", "def handle(self, record):\n        if 'nccl' in record.getMessage(): return"
    )
    subprocess.run([sys.executable, "-c", program, state], check=True, timeout=30, capture_output=True)
    assert fatal.fatal_counts(state) == NONE | {"engine_dead": 1, "nccl_error": 1}


@pytest.mark.parametrize("configured", [False, True])
def test_lines_that_nobody_writes_still_come_out_on_stderr_once(state, configured):
    program = textwrap.dedent("""
        import logging, sys
        from pathlib import Path
        from vllm_vitals.tracing.fatal import watch as fatal
        if sys.argv[2] == "True":
            logging.basicConfig(format="%(message)s")
        fatal.install(Path(sys.argv[1]))
        logging.getLogger("library").warning("of a library")
        logging.getLogger("vllm.engine").error("EngineCore encountered a fatal error.")
        logging.getLogger("library").info("not wanted")
    """)
    command = [sys.executable, "-c", program, state, str(configured)]
    written = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True).stderr
    assert sorted(written.splitlines()) == [
        "EngineCore encountered a fatal error.",
        "engine failure: engine_dead",
        "of a library",
    ]

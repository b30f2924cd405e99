from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioning import PROVIDERS, Setting
from provisioning.base import HostLost, NoCapacity, Request
from provisioning.gpus import Gpu, GpuSurvey
from provisioning.local import LocalProvider
from provisioning.local_shell import LocalShell
from provisioning.processes import identity_of, is_alive
from provisioning.spawner import Spawner
from tests.fakes.attempts import SUPERVISOR, document, until

ANSWERS = "import json, os, sys; sys.stdin.readline(); print(json.dumps({}), flush=True); sys.stdin.read()"
SPEC: dict[str, Any] = {"attempt": "a", "env": {"TOKEN": "s3cret"}}


@pytest.fixture
def shell() -> Iterator[LocalShell]:
    opened = LocalShell(str(SUPERVISOR))
    yield opened
    opened.close()


def spawner_that(program: str, answer_s: float = 20.0) -> Spawner:
    return Spawner([sys.executable, "-I", "-S", "-c", program], answer_s)


class TwoGpus:
    def survey(self) -> GpuSurvey:
        return GpuSurvey(tuple(Gpu(f"GPU-{name}", index, "card", 24_000) for index, name in enumerate("ab")))


class TestTheProvider:
    def provider(self, **environment: str) -> LocalProvider:
        return LocalProvider(str(SUPERVISOR), environment, driver=TwoGpus(), cores=lambda: (0, 1, 4, 5))

    def test_the_inherited_mask_is_honoured(self) -> None:
        request = Request(None, gpus=1, cpus=1)
        provider = self.provider(CUDA_VISIBLE_DEVICES="1")
        (offer,) = provider.offers(request)
        assert (offer.gpus, offer.cores, offer.price_usd_per_h) == (1, 4, 0.0)
        (slot,) = provider.slots(provider.create(offer, "l"), request)
        assert (slot.name, slot.gpu_uuids, slot.gpu_indices) == ("gpu1", ("GPU-b",), (1,))

    def test_hidden_gpus_are_not_offered(self) -> None:
        provider = self.provider(CUDA_VISIBLE_DEVICES="")
        assert provider.offers(Request(None, gpus=1, cpus=1)) == ()
        handle = provider.create(provider.offers(Request(None, gpus=0, cpus=1))[0], "l")
        with pytest.raises(NoCapacity, match="0 of 0 usable GPUs"):
            provider.slots(handle, Request(None, gpus=1, cpus=1))

    def test_more_cpu_slots_than_cores_share_them(self) -> None:
        provider = self.provider()
        handle = provider.create(provider.offers(Request(None, 0, 1))[0], "l")
        slots = provider.slots(handle, Request(6, 0, 1))
        assert [slot.cores for slot in slots] == [(0,), (1,), (4,), (5,), (0,), (1,)]
        assert all(slot.shares_cores for slot in slots)

    def test_a_label_of_an_earlier_controller_is_still_held(self) -> None:
        assert set(self.provider().observe(["armature/h/1"])) == {"armature/h/1"}
        assert "Present" in repr(self.provider().observe(["armature/h/1"]))

    def test_importing_the_table_loads_no_driver(self) -> None:
        heavy = "{'pynvml', 'runner', 'torch', 'sqlalchemy', 'paramiko', 'requests'}"
        code = f"import sys, provisioning; print(sorted({heavy} & set(sys.modules)))"
        root = str(SUPERVISOR.parents[1])
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True, timeout=60)
        assert done.stdout == b"[]\n"
        made = PROVIDERS["local"](Setting(str(SUPERVISOR), {}, SUPERVISOR.parent))
        assert isinstance(made, LocalProvider)


class TestTheSpawner:
    def test_a_dead_one_is_started_again(self, shell: LocalShell, tmp_path: Path) -> None:
        def spec(number: int) -> dict[str, Any]:
            folder = str(tmp_path / f"attempt-{number}")
            return {
                "attempt": str(number), "argv": [sys.executable, "-c", "import os; print(os.getppid())"], "cwd": "/",
                "env": {}, "run_dir": str(tmp_path), "attempt_dir": folder,
            }  # fmt: skip

        shell.spawn([spec(1)])
        before = shell._spawner._process
        assert before is not None
        before.kill()
        before.wait()
        shell.spawn([spec(2)])
        assert shell._spawner._process is not before
        assert document(tmp_path / "attempt-2" / "exit.json")["code"] == 0

    def test_no_answer_in_time_is_host_lost(self) -> None:
        silent = spawner_that("import time; time.sleep(600)", answer_s=0.2)
        with pytest.raises(HostLost, match=r"nothing within 0\.2 s") as lost:
            silent.ask(SPEC)
        assert "s3cret" not in str(lost.value)
        assert silent._process is None

    def test_one_that_reads_nothing_cannot_block_us(self) -> None:
        silent = spawner_that("import time; time.sleep(600)", answer_s=0.2)
        with pytest.raises(HostLost, match="nothing within"):
            silent.ask({**SPEC, "argv": ["x" * 1_000_000]})

    def test_a_large_launch_spec_arrives_whole(self) -> None:
        echo = spawner_that(
            "import json, sys\n"
            "for line in sys.stdin: print(json.dumps({'n': len(json.loads(line)['argv'][0])}), flush=True)"
        )
        assert echo.ask({**SPEC, "argv": ["x" * 1_000_000]}) == {"n": 1_000_000}
        echo.close()

    def test_its_last_words_are_told(self) -> None:
        with pytest.raises(HostLost, match="it ended; it said: no room here"):
            spawner_that("import sys; sys.stdin.readline(); sys.exit('no room here')").ask(SPEC)

    @pytest.mark.parametrize("answer", ["not json", "[]"])
    def test_an_answer_that_is_none(self, answer: str) -> None:
        broken = spawner_that(f"import sys; sys.stdin.readline(); print({answer!r}, flush=True); sys.stdin.read()")
        with pytest.raises(HostLost, match="no answer from"):
            broken.ask(SPEC)

    def test_a_python_that_is_not_there(self) -> None:
        with pytest.raises(HostLost, match="/no/such/python"):
            LocalShell(str(SUPERVISOR), python="/no/such/python").spawn([SPEC])

    def test_it_gets_none_of_our_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OUR_TOKEN", "s3cret")
        echo = spawner_that(
            "import json, os, sys; sys.stdin.readline(); print(json.dumps(dict(os.environ)), flush=True)"
        )
        assert "OUR_TOKEN" not in echo.ask(SPEC)
        echo.close()

    def test_it_gets_none_of_our_files(self, tmp_path: Path) -> None:
        with open(tmp_path / "controller.lock", "w") as held:
            os.set_inheritable(held.fileno(), True)
            program = (
                "import json, os, sys; sys.stdin.readline(); print(json.dumps({'fds': os.listdir('/proc/self/fd')}))"
            )
            echo = spawner_that(program + "; sys.stdout.flush()")
            assert str(held.fileno()) not in echo.ask(SPEC)["fds"]
        echo.close()


class TestFiles:
    def test_a_full_disk_is_told_and_leaves_the_old_file(self, shell: LocalShell, tmp_path: Path) -> None:
        path = tmp_path / "control.json"
        shell.write(str(path), b"old")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            with pytest.raises(HostLost, match=r"cannot write .*control\.json: File too large"):
                shell.write(str(path), b"new")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert path.read_bytes() == b"old"
        assert [found.name for found in tmp_path.iterdir()] == ["control.json"]

    def test_a_file_in_place_of_a_folder_is_told(self, shell: LocalShell, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(HostLost, match="cannot write"):
            shell.write(str(tmp_path / "file" / "below"), b"")
        with pytest.raises(HostLost, match="cannot read"):
            shell.read(str(tmp_path))

    def test_what_we_may_not_read_is_told(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("")
        secret.chmod(0)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
        code = (
            "import os, sys; from provisioning.local_shell import LocalShell; from provisioning.base import HostLost\n"
            "os.getuid() or os.setuid(65534)\n"
            "try: LocalShell('/s').read(sys.argv[1])\n"
            "except HostLost as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(secret)],
            cwd=str(SUPERVISOR.parents[1]), capture_output=True, check=True, timeout=60, text=True,
        )  # fmt: skip
        assert done.stdout == f"this machine cannot read {secret}: Permission denied\n"


class TestProcesses:
    def test_ourselves(self) -> None:
        identity = identity_of(os.getpid())
        assert identity is not None
        assert identity.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert is_alive(identity)

    def test_a_zombie_has_ended(self) -> None:
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
        identity = identity_of(child.pid)
        assert identity is not None
        assert is_alive(identity)
        assert child.stdin is not None
        child.stdin.close()
        until(lambda: not is_alive(identity))
        assert identity_of(child.pid) == identity, "it is a zombie: still there, and not alive"
        child.wait()
        assert identity_of(child.pid) is None

    def test_a_name_with_brackets_and_blanks(self, tmp_path: Path) -> None:
        program = tmp_path / ") S 1 (x"
        program.symlink_to("/bin/sleep")
        child = subprocess.Popen([str(program), "600"])
        identity = identity_of(child.pid)
        assert identity is not None
        until(lambda: ") S 1 (x" in Path(f"/proc/{child.pid}/stat").read_text())
        assert is_alive(identity)
        child.kill()
        child.wait()

    def test_the_supervisor_says_the_same(self) -> None:
        code = (
            "import json, sys; from runner.supervisor import identity_of as of; print(json.dumps(of(int(sys.argv[1]))))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(os.getpid())],
            cwd=str(SUPERVISOR.parents[1]), capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        ours = identity_of(os.getpid())
        assert ours is not None
        assert json.loads(done.stdout) == {name: getattr(ours, name) for name in ours.__slots__}

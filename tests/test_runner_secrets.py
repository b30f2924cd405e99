"""Secrets of a launch on a rented machine: who needs one gets it, and nothing else ever shows, keeps or sends it."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.files_now import files_now, names_now
from tests.fakes.vast.account import SCOPES, ApiKey
from tests.fakes.vast.answers import Answer
from tests.fakes.vast.faults import Fault
from tests.fakes.vast_lab import RENT, VastLab, vast_lab

SCRIPT = """
import hashlib, json, os, sys
from pathlib import Path
run_dir = Path(os.environ["RUNNER_RUN_DIR"])
def text(path):
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
seen = {
    "token": hashlib.sha256(os.environ["HF_TOKEN"].encode()).hexdigest(),
    "others": {name: value for name, value in os.environ.items() if name != "HF_TOKEN"},
    "processes": [text(path) for path in Path("/proc").glob("[0-9]*/cmdline")],
    "made": (Path(os.environ["RUNNER_ENVIRONMENT"]) / "made").read_text().split()[0],
}
(run_dir / "seen.json").write_text(json.dumps(seen))
steps = int(os.environ["RUNNER_STEPS"])
for step in range(1, steps + 1):
    print(f"step {step}/{steps} loss={1.0 / step:.9f}", flush=True)
"""
"""Shows that it has the token, and writes down everything else that it can see."""

SETUP = 'mkdir -p "$RUNNER_ENVIRONMENT/bin" && ln -s "$(command -v python3)" "$RUNNER_ENVIRONMENT/bin/python" && '
SETUP += 'printf %s "$HF_TOKEN" | sha256sum > "$RUNNER_ENVIRONMENT/made"'

DESTROY = "/api/v0/instances/{id}/"


@dataclass
class Planted:
    """Strings that nobody has seen before, by what they are."""

    texts: Mapping[str, str]

    def in_bytes(self, data: bytes) -> list[str]:
        """Which of them are there, as they are or in base64 at any place of a line."""
        return [name for name, text in self.texts.items() if any(form in data for form in _forms(text))]


def _forms(text: str) -> Iterator[bytes]:
    data = text.encode()
    yield data
    for shift in range(3):
        # The signs at both ends depend on what stands beside it.
        yield base64.b64encode(b"-" * shift + data)[4:-4]


@dataclass
class Overheard:
    """What went to the provider besides the Authorization header, and the arguments of every process meanwhile."""

    lab: VastLab
    sent: list[bytes] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    arguments: set[bytes] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Overheard:
        answer: Callable[..., Answer] = self.lab.fake.handle

        def handle(method: str, path: str, query: Any, headers: Mapping[str, str], body: bytes, now_s: float) -> Answer:
            others = {name: text for name, text in headers.items() if name.lower() != "authorization"}
            self.keys |= {text for name, text in headers.items() if name.lower() == "authorization"}
            self.sent.append(f"{method} {path} {dict(query)} {others} ".encode() + body)
            return answer(method, path, query, headers, body, now_s)

        self.lab.fake.handle = handle  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._over.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.arguments.add(path.read_bytes())
                except OSError:
                    continue


def holders(planted: Planted, folder: Path) -> dict[str, list[str]]:
    """The files below a folder that hold something planted, and what."""
    found = {str(path.relative_to(folder)): planted.in_bytes(data) for path, data in files_now(folder).items()}
    return {name: held for name, held in found.items() if held}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[VastLab]:
    with vast_lab(tmp_path) as found:
        yield found


@pytest.fixture
def planted(lab: VastLab) -> Planted:
    """A key of the account, a token that the arm asks for, one that nobody asks for, and a person's private key."""
    texts = {name: f"{name}{secrets.token_hex(20)}" for name in ("key", "hf", "other", "person")}
    lab.fake.account.keys[texts["key"]] = ApiKey("planted", texts["key"], frozenset(SCOPES))
    lab.extra_environment |= {"VAST_API_KEY": texts["key"], "HF_TOKEN": texts["hf"], "WANDB_API_KEY": texts["other"]}
    return Planted(texts)


def private_key(text: str) -> str:
    return f"-----BEGIN OPENSSH PRIVATE KEY-----\n{text}\n-----END OPENSSH PRIVATE KEY-----\n"


def test_what_is_planted_is_found_as_it_is_and_in_base64(planted: Planted) -> None:
    for name, text in planted.texts.items():
        for shift in range(4):
            line = b"x" * shift + text.encode() + b"\n"
            assert planted.in_bytes(line) == planted.in_bytes(base64.b64encode(line)) == [name]


@pytest.mark.long
def test_no_secret_is_kept_shown_or_sent(lab: VastLab, planted: Planted, tmp_path: Path) -> None:
    path = lab.arm(
        "A", SCRIPT, "{steps}", steps=20, resources={"gpus": 1},
        env={"HF_TOKEN": {"from": "HF_TOKEN"}}, environment={"setup": SETUP},
    )  # fmt: skip
    sources = [path.parent / "id_rsa", path.parent / ".env", tmp_path / "person" / ".ssh" / "id_ed25519"]
    for source in sources:
        source.parent.mkdir(exist_ok=True)
        source.write_text(private_key(planted.texts["person"]))
    with Overheard(lab) as heard:
        # The answer is kept back so that the machine can be searched after everything has happened on it.
        lab.fake.plan.script("DELETE", DESTROY, Fault("server_error", latency_s=1.0))
        launched = lab.start("launch", path, *RENT)
        lab.until(lambda: lab.fake.counts()[f"DELETE {DESTROY}"], "the machine to be given back")
        (machine,) = lab.ours()
        there = lab.home_there(machine).parent
        kept_there = holders(planted, there)
        files_there = names_now(there)
        out, err = launched.communicate(timeout=120.0)
        assert launched.returncode == 0, err
        lab.until_released()
        said = [out, err]
        commands = [lab.start(*words) for words in (["status"], ["status", "--json"], ["offers"], ["doctor"])]
        said += [text for command in commands for text in command.communicate(timeout=120.0)]

    (run,) = lab.status().values()
    assert run["state"] == "finished"
    seen = json.loads((lab.home / run["run_dir"] / "seen.json").read_text())
    assert seen["token"] == seen["made"] == digest(planted.texts["hf"])
    assert planted.in_bytes(json.dumps(seen).encode()) == []
    assert len(seen["processes"]) > 2

    assert {"seen.json", "train.py", "made"} <= files_there
    assert kept_there == {}
    planted_at = {str(source.relative_to(tmp_path)) for source in sources}
    assert set(holders(planted, tmp_path)) == planted_at
    assert planted.in_bytes("\n".join(said).encode()) == []
    assert len(heard.arguments) > 10
    assert planted.in_bytes(b"\n".join(heard.arguments)) == []
    check_the_provider_heard_nothing(lab, planted, heard)
    check_the_key_of_the_home(lab, tmp_path)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_the_provider_heard_nothing(lab: VastLab, planted: Planted, heard: Overheard) -> None:
    """The key is in the Authorization header and nowhere else; labels, start commands and variables hold nothing."""
    assert f"Bearer {planted.texts['key']}" in heard.keys
    assert len(heard.sent) > 10
    assert planted.in_bytes(b"\n".join(heard.sent)) == []
    (machine,) = lab.ever()
    assert planted.in_bytes(repr(machine).encode()) == []
    assert machine.onstart
    assert machine.label == lab.leases()[0].label
    lab.fake.assert_clean()


def check_the_key_of_the_home(lab: VastLab, folder: Path) -> None:
    """The private half of the home's own key pair is in its file alone, which nobody else can read."""
    (file,) = [path for path, data in files_now(lab.home).items() if b"PRIVATE KEY" in data]
    assert file.stat().st_mode & 0o077 == 0
    lines = file.read_text().splitlines()
    own = Planted({str(number): line for number, line in enumerate(lines[2:-2])})  # the first begins as any such key
    assert own.texts
    assert set(holders(own, folder)) == {str(file.relative_to(folder))}

"""Likely secrets in what is to be uploaded: planted ones are found and never shown, our own files hold none."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.staging.secrets import Finding, likely_secrets

ROOT = Path(__file__).parents[1]
LETTERS = string.ascii_letters + string.digits
DRAWN = random.Random(7)


def drawn(length: int, signs: str = LETTERS) -> str:
    """A token as an issuer would draw it. Made here, so that this file holds none."""
    return "".join(DRAWN.choices(signs, k=length - 1)) + "7"


HEXADECIMAL = "0123456789abcdef"
PLANTED = [
    ("a private key", "-----BEGIN OPENSSH " + "PRIVATE KEY-----"),
    ("a private key", "key = '''-----BEGIN " + "PRIVATE KEY-----"),
    ("a private key", "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----"),
    ("a private key of PuTTY", "PuTTY-User-Key-File-" + "3: ssh-ed25519"),
    ("a token of Hugging Face", "login('hf_" + drawn(34) + "')"),
    ("a token of GitHub", "ghp_" + drawn(36)),
    ("a token of GitHub", "https://github_pat_" + drawn(22) + "_" + drawn(59) + "@github.com/x"),
    ("a token of GitLab", "glpat-" + drawn(20)),
    ("an access key of AWS", "aws_access_key_id = AKIA" + drawn(16, string.ascii_uppercase + "234567")),
    ("a secret key of AWS", "AWS_SECRET_ACCESS_KEY: " + drawn(40, LETTERS + "+/")),
    ("an API key (sk-…)", "OPENAI='sk-proj-" + drawn(48) + "'"),
    ("an API key (sk-…)", "sk-ant-api03-" + drawn(90)),
    ("a token of Slack", "xoxb-" + drawn(12, string.digits) + "-" + drawn(24)),
    ("a webhook of Slack", "https://hooks.slack.com/services/T" + drawn(8) + "/B" + drawn(8) + "/" + drawn(24)),
    ("an API key of Google", "AIza" + drawn(35)),
    ("a token of npm", "npm_" + drawn(36)),
    ("an API key (64 hexadecimal digits)", "VAST_API_KEY=" + drawn(64, HEXADECIMAL)),
    ("an API key (64 hexadecimal digits)", '{"api_key": "' + drawn(64, HEXADECIMAL) + '"}'),
    ("an API key (64 hexadecimal digits)", "vastai set api-key " + drawn(64, HEXADECIMAL)),
    ("an API key (40 hexadecimal digits)", "WANDB_API_KEY=" + drawn(40, HEXADECIMAL)),
    ("a password in an address", "git+https://me:" + drawn(12) + "@host/x"),
    ("a token in an address", "pip install git+https://" + drawn(30) + "@host/x"),
]

HARMLESS = [
    "the key is 64 hexadecimal digits, e.g. sha256=" + drawn(64, HEXADECIMAL),
    '"hash": "' + drawn(64, HEXADECIMAL) + '"',
    "commit " + drawn(40, HEXADECIMAL) + " adds the API key check",
    "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "hf_transfer hf_hub_download_with_a_very_long_name_here",
    "hf_your_token_here_your_token_here",
    "ghp_" + "0" * 36,
    "sk-your-key-goes-here-please-and-thanks",
    "task-1a2b3c4d5e6f7g8h9i0j1k2l3m",
    "mask-attention-with-a-long-name-1234567890",
    "-----BEGIN PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----",
    "https://user:password@host/x",
    "https://{user}:{password}@host/x",
    "postgres://localhost:5432/db",
    "git@github.com:org/name.git",
    "AKIAXXXXXXXXXXXXXXXX",
    "VAST_API_KEY=$VAST_API_KEY",
    "api_key: {from: VAST_API_KEY}",
    "aws_secret_access_key = os.environ['AWS_SECRET_ACCESS_KEY']",
]


@pytest.mark.parametrize(("kind", "line"), PLANTED)
def test_a_planted_secret_is_found_in_its_line_and_not_shown(kind: str, line: str) -> None:
    found = likely_secrets({"a/b.py": b"first\n" + line.encode() + b"\r\nthird", "c": b""})
    assert Finding("a/b.py", 2, kind) in found
    for finding in found:
        shown = str(finding) + repr(finding)
        assert not any(line[at : at + 9] in shown for at in range(len(line) - 9) if "PRIVATE" not in line)


@pytest.mark.parametrize("line", HARMLESS)
def test_prose_hashes_and_placeholders_are_no_secrets(line: str) -> None:
    assert likely_secrets({"x": line.encode()}) == ()


def test_our_own_files_hold_none_and_one_that_is_planted_there_is_found() -> None:
    files = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for top in ("arms", "runner", "trainer", "provisioning", "reports", "docs")
        for path in sorted((ROOT / top).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(files) > 200
    assert likely_secrets(files) == ()
    name = "runner/spec/rules.py"
    planted = {**files, name: files[name] + b"\n# " + PLANTED[4][1].encode() + b"\n"}
    assert likely_secrets(planted) == (Finding(name, files[name].count(b"\n") + 2, PLANTED[4][0]),)


def test_a_line_is_told_once_for_each_kind() -> None:
    line = (PLANTED[4][1] + " " + PLANTED[4][1] + " " + PLANTED[5][1]).encode()
    assert [finding.kind for finding in likely_secrets({"x": line})] == [PLANTED[4][0], PLANTED[5][0]]


@given(st.binary(max_size=300))
def test_any_bytes_may_be_looked_at(content: bytes) -> None:
    assert all(1 <= finding.line <= content.count(b"\n") + 1 for finding in likely_secrets({"x": content}))


def test_long_lines_and_large_files_take_no_time_worth_speaking_of() -> None:
    lines = b"x:" * 400_000 + b"\n" + b"api key " * 100_000 + b"\n" + b"sk-" * 100_000 + PLANTED[10][1].encode()
    assert [finding.line for finding in likely_secrets({"x": lines})] == [3]

"""The agent as one file: nothing is missing in it, and nothing needs more than an old enough Python and its library."""

from __future__ import annotations

import ast
import io
import sys
import zipfile
from pathlib import Path

import pytest

import provisioning
from provisioning.agent_archive import BOOT, MODULES, OLDEST_PYTHON, agent_archive
from tests.fakes.attempts import SUPERVISOR

PACKAGE = Path(provisioning.__file__).parent


def imported(source: str) -> set[str]:
    """The modules that a source imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_the_agent_needs_only_the_library_and_its_neighbours(name: str) -> None:
    source = (PACKAGE / f"{name}.py").read_text()
    ast.parse(source, feature_version=OLDEST_PYTHON)
    for module in imported(source):
        top = module.partition(".")[0]
        if top == "provisioning":
            assert module.partition(".")[2] in MODULES
        else:
            assert top in sys.stdlib_module_names or top == "pynvml", module  # which is asked for inside a try


def test_everything_that_the_agent_imports_is_in_it_and_nothing_else() -> None:
    needed, open_ends = set(), ["agent"]
    while open_ends:
        name = open_ends.pop()
        if name not in needed:
            needed.add(name)
            modules = imported((PACKAGE / f"{name}.py").read_text())
            open_ends += [each.removeprefix("provisioning.") for each in modules if each.startswith("provisioning.")]
    assert needed == set(MODULES)


def test_the_same_sources_are_the_same_bytes_and_name() -> None:
    first = agent_archive(str(SUPERVISOR))
    agent_archive.cache_clear()
    assert agent_archive(str(SUPERVISOR)) == first
    with zipfile.ZipFile(io.BytesIO(first.data)) as archive:
        assert archive.read("supervisor.py") == SUPERVISOR.read_bytes()
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_what_runs_before_anything_is_known_is_as_old_as_python_gets() -> None:
    ast.parse(BOOT, feature_version=(3, 0))
    assert imported(BOOT) <= {"hashlib", "os", "sys"}
    assert "f'" not in BOOT
    assert 'f"' not in BOOT

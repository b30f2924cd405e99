"""The house is as it is drawn: who imports whom, what stays pure, how long files are, and a README that is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.home import Home, create_home
from runner.lock import HomeLock
from runner.store.schema import create_or_upgrade

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("runner", "provisioning", "reports", "trainer")
MAY_IMPORT = {"runner": {"provisioning", "reports"}, "provisioning": set(), "reports": set(), "trainer": set()}
PURE = (
    "runner/spec/resolve.py",
    "runner/spec/lint.py",
    "runner/spec/identity.py",
    "runner/spec/consistency.py",
    "runner/spec/notices.py",
    "runner/plan.py",
    "runner/schedule.py",
    "runner/failure",
    "runner/extending.py",
    "runner/diff.py",
    "runner/quarantine.py",
    "runner/doctor.py",
    "provisioning/gpu_watch.py",
    "provisioning/vast/asking.py",
    "provisioning/vast/models.py",
    "provisioning/vast/spacing.py",
    "provisioning/vast/wanted.py",
    "provisioning/vast/prices.py",
    "provisioning/vast/filters.py",
    "provisioning/vast/offers.py",
    "provisioning/vast/boot.py",
    "provisioning/vast/host_check.py",
    "runner/renting/money.py",
    "runner/renting/decide.py",
    "runner/staging/data.py",
    "runner/staging/secrets.py",
    "runner/liveness.py",
    "runner/budgets.py",
    "provisioning/ledger.py",
    "runner/records.py",
    "runner/judge",
    "reports/markdown.py",
    "reports/overlap.py",
    "reports/contrasts.py",
    "reports/intervals.py",
)
IMPURE_MODULES = {
    "time",
    "datetime",
    "os",
    "subprocess",
    "socket",
    "sqlite3",
    "sqlalchemy",
    "random",
    "pathlib",
    "threading",
}


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at whatever depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    for path in sources(package):
        for name in imported(path):
            top = name.split(".")[0]
            assert top not in PACKAGES or top in allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_data_is_read_without_what_prepares_it() -> None:
    for path in sources("trainer/data"):
        assert not [name for name in imported(path) if name.startswith("trainer.prepare")], path.relative_to(ROOT)


def test_there_is_no_import_cycle() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources(*PACKAGES)}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    arrows = {name: {found for found in _named(path, set(modules)) if found != name} for name, path in modules.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for following in arrows[name]:
                walk(following, (*trail, name))
            done.add(name)

    for name in modules:
        walk(name, ())


def _named(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of ours that a file imports when it is loaded (not inside a function)."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (found if found in known else node.module for found in submodules if node.module in known)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def test_pure_modules_know_no_clock_file_process_network_or_database() -> None:
    for name in PURE:
        place = ROOT / name
        for path in [place] if place.suffix else sorted(place.glob("*.py")):
            found = {module.split(".")[0] for module in imported(path) if module != "os.path"} & IMPURE_MODULES
            assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


def test_no_file_is_longer_than_one_concept() -> None:
    long = {str(path.relative_to(ROOT)): count for path in sources(*PACKAGES) if (count := _lines(path)) > 400}
    # The supervisor is sent to hosts as it is: one file, standard library only.
    assert long.keys() <= {"runner/supervisor.py"}
    assert all(count <= 550 for count in long.values())


def _lines(path: Path) -> int:
    return path.read_text().count("\n")


def test_every_module_and_public_function_says_what_it_is() -> None:
    silent = []
    for path in sources(*PACKAGES):
        if "migrations" in path.parts:
            continue
        tree = ast.parse(path.read_text())
        if path.name != "__init__.py" and not ast.get_docstring(tree):
            silent.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not silent


def test_only_the_controller_catches_everything() -> None:
    found = []
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = [node.type.id] if isinstance(node.type, ast.Name) else []
                if node.type is None or set(names) & {"Exception", "BaseException"}:
                    found.append(str(path.relative_to(ROOT)))
    assert set(found) <= {"runner/controller.py", "trainer/__main__.py"}


def test_the_tree_in_the_readme_is_the_real_one() -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```tree\n(.*?)```", readme, re.S)
    assert block is not None
    listed = set(_tree_paths(block.group(1)))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    real: set[str] = set()
    for name in tracked.stdout.splitlines():
        parts = name.split("/")
        real.add(parts[0] + ("/" if len(parts) > 1 else ""))
        if parts[0] in PACKAGES and len(parts) > 1 and parts[1] != "__init__.py" and parts[1] != "py.typed":
            real.add(f"{parts[0]}/{parts[1]}" + ("/" if len(parts) > 2 else ""))
    assert listed == real


def _tree_paths(text: str) -> Iterator[str]:
    folder = ""
    for line in text.splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
            yield name
        else:
            yield folder + name


def test_links_in_documents_lead_somewhere() -> None:
    for document in [
        *ROOT.glob("*.md"),
        *ROOT.glob("arms/*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (document.parent / target).exists(), f"{document.name} -> {target}"


def test_every_command_is_in_the_readme() -> None:
    from runner.cli import app

    readme = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"runner {command.callback.__name__}" in readme


def test_starting_is_quick_because_little_is_loaded(tmp_path: Path) -> None:
    home = Home(tmp_path / "runs")
    create_home(home)
    lock = HomeLock(home.lock)
    assert lock.acquire()
    create_or_upgrade(home, lock)
    lock.release()
    code = (
        "import sys\nfrom runner.cli import run\n"
        "code = run(sys.argv[1:])\n"
        "heavy = {'torch', 'alembic', 'paramiko', 'requests', 'numpy', 'matplotlib', 'scipy', 'sqlalchemy'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(50 + len(heavy) if heavy else code)\n"
    )
    calls = (["--help"], 0), (["status", "--home", str(home.root)], 0), (["status", "--home", str(tmp_path)], 3)
    for arguments, expected in calls:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == expected, done.stderr


def test_declared_dependencies_are_used_and_used_ones_are_declared() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(name for extra in ("trainer", "encoders", "prepare") for name in project["optional-dependencies"][extra]),
    ]
    names = {re.split(r"[<>=\[;~! ]", line)[0].lower() for line in declared}
    modules = {
        "nvidia-ml-py": "pynvml",
        "pyyaml": "yaml",
        "pillow": "PIL",
        "protobuf": "google",
        "huggingface-hub": "huggingface_hub",
    }
    extras = project["optional-dependencies"]
    assert [line.replace("-gpu", "") for line in extras["prepare-gpu"]] == extras["prepare"], "they differ in one wheel"
    used = {name.split(".")[0] for path in sources(*PACKAGES) for name in imported(path)}
    assert {modules.get(name, name) for name in names} == {
        name
        for name in used
        # the last ones are parts of pydantic, jinja2 and huggingface_hub
        if name not in sys.stdlib_module_names and name not in {*PACKAGES, "pydantic_core", "markupsafe", "httpx2"}
    }

"""Where a home may be, and what stands in its way."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.detach import own_environment, shell_environment
from runner.errors import HomeError
from runner.home import Home, create_home, file_system, find_home
from tests.fakes.others import as_nobody, open_to_others

MOUNTS = "/dev/sda1 / ext4 rw 0 0\nserver:/data /data nfs4 rw 0 0\ntmpfs /data/fast\\040disk tmpfs rw 0 0\n"


def test_the_home_is_named_by_option_variable_or_habit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_home(None).root == tmp_path / "runs"
    monkeypatch.setenv("RUNNER_HOME", "elsewhere")
    assert find_home(None).root == tmp_path / "elsewhere"
    assert find_home(Path("/x/../y")).root == Path("/y")


def test_a_new_home_is_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "runs")
    create_home(home)
    assert home.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/me/runs", "ext4"), ("/data/runs", "nfs4"), ("/database", "ext4"), ("/data/fast disk/runs", "tmpfs")],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert file_system(Path(path), MOUNTS) == kind


def test_a_network_file_system_is_refused_with_path_and_way_out(tmp_path: Path) -> None:
    mounts = MOUNTS + f"server:/home {tmp_path} nfs4 rw 0 0\n"
    with pytest.raises(HomeError, match=f"{tmp_path}/runs.*network file system.*--home"):
        create_home(Home(tmp_path / "runs"), mounts)
    assert not (tmp_path / "runs").exists()


def test_a_home_of_somebody_else_is_refused_before_anything_starts(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o755)
    open_to_others(locked / "new")

    def refused() -> bool:
        for root in (locked, locked / "new"):
            with pytest.raises(HomeError, match=str(root)):
                create_home(Home(root))
        return True

    assert as_nobody(refused)
    assert list(locked.iterdir()) == []


def test_our_processes_import_this_copy_and_scripts_get_the_shell_s_own_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/the/person")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    ours = own_environment()
    assert ours["PYTHONPATH"].split(":")[0] == str(Path(__file__).resolve().parents[1])
    assert ours["PYTHONSAFEPATH"] == "1"
    theirs = shell_environment(ours)
    assert theirs["PYTHONPATH"] == "/of/the/person"
    assert "PYTHONSAFEPATH" not in theirs
    assert not any(name.startswith("RUNNER_BORROWED") for name in theirs)

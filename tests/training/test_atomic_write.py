"""What stands at a path is whole, whenever the process is killed."""

import contextlib

import pytest

from corrmatch_hf.training import atomic_write


class Killed(BaseException):
    pass


def files(folder):
    return {p.name: p.read_text() for p in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "model").write_text("old")
    return folder


def killed_at(monkeypatch, number):
    """Whatever touches the names in a folder counts; before the one of this number the process is gone."""
    from pathlib import Path

    calls = []

    def counted(original):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) > number:
                raise Killed
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(atomic_write.shutil, "rmtree", counted(atomic_write.shutil.rmtree))
    monkeypatch.setattr(atomic_write.os, "replace", counted(atomic_write.os.replace))


@pytest.mark.parametrize("number", range(8))
def test_a_folder_is_the_old_or_the_new_one(folder, monkeypatch, number):
    aside = folder.with_name(".best.writing")
    aside.mkdir()
    (aside / "model").write_text("new")
    with monkeypatch.context() as patch:
        killed_at(patch, number)
        with contextlib.suppress(Killed):
            atomic_write.move_folder(aside, folder)
    atomic_write.recover_folder(folder)
    assert files(folder) in ({"model": "old"}, {"model": "new"})
    assert [p.name for p in folder.parent.iterdir()] == ["best"]


def test_a_failure_while_writing_leaves_the_old_folder_and_nothing_else(folder):
    with pytest.raises(OSError), atomic_write.replaced_folder(folder) as aside:
        (aside / "model").write_text("half")
        raise OSError("disk full")
    assert files(folder) == {"model": "old"} and [p.name for p in folder.parent.iterdir()] == ["best"]


def test_files_are_replaced_among_others(folder):
    (folder / "notes").write_text("mine")
    with atomic_write.replaced_files(folder) as aside:
        (aside / "model").write_text("new")
    assert files(folder) == {"model": "new", "notes": "mine"}
    with pytest.raises(OSError), atomic_write.replaced_files(folder) as aside:
        (aside / "model").write_text("half")
        raise OSError("disk full")
    assert files(folder) == {"model": "new", "notes": "mine"}


def test_a_removed_folder_is_never_half_there(folder, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at(patch, 2)  # moved away, not yet deleted
        with pytest.raises(Killed):
            atomic_write.remove_folder(folder)
    assert [p.name for p in folder.parent.iterdir()] == [".best.writing"]
    atomic_write.recover_folder(folder)
    assert list(folder.parent.iterdir()) == []

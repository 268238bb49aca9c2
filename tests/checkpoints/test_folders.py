"""Folders: names are found or explained, and a folder is replaced whole or not at all."""

import os
import shutil
from pathlib import Path

import pytest

from mixtral_edu.checkpoints import folders as files
from mixtral_edu.checkpoints.folders import find_folder, replace_folder

WRITTEN = ("config.json", "part-*")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def fill(target: Path, text: str, overwrite: bool = False) -> None:
    with replace_folder(target, overwrite, WRITTEN) as new:
        (new / "config.json").write_text(text)
        (new / "part-1").write_text(text)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder that `fill` wrote, beside nothing else."""
    fill(tmp_path / "saved", "old")
    return tmp_path / "saved"


def test_bundled_names_and_folders_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "other"):
        Path(name).mkdir()
    assert find_folder("tiny") == files.bundled_folder("tiny")  # it always loads
    assert find_folder("./tiny") == Path("tiny")
    assert find_folder("other") == find_folder(Path("other")) == Path("other")


def test_a_hub_name_gets_the_command_that_downloads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        find_folder("mistralai/Mixtral-8x7B-v0.1")
    assert "nothing is fetched" in str(caught.value)
    assert "hf download mistralai/Mixtral-8x7B-v0.1" in str(caught.value)
    assert "--local-dir Mixtral-8x7B-v0.1" in str(caught.value)
    Path("mistralai/Mixtral-8x7B-v0.1").mkdir(parents=True)
    assert find_folder("mistralai/Mixtral-8x7B-v0.1") == Path("mistralai/Mixtral-8x7B-v0.1")


def test_other_names_are_explained(folder):
    with pytest.raises(FileNotFoundError, match="'huge' is neither a folder nor .*tiny, tiny-instruct"):
        find_folder("huge")
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        find_folder(folder / "missing")
    with pytest.raises(NotADirectoryError, match="config.json' is a file"):
        find_folder(folder / "config.json")
    for wrong in (3, None, ["tiny"]):
        with pytest.raises(TypeError, match="name_or_folder"):
            find_folder(wrong)


def test_a_missing_or_empty_target_is_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "new" / "in" / "new"):
        fill(target, "text")
        assert contents(target) == {"config.json": "text", "part-1": "text"}
        assert os.listdir(target.parent) == [target.name] or target.parent == tmp_path
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]


def test_content_is_refused_unless_overwrite(folder):
    with pytest.raises(FileExistsError, match=r"saved' has content already: give overwrite=True"):
        fill(folder, "new")
    assert contents(folder) == {"config.json": "old", "part-1": "old"}
    fill(folder, "new", overwrite=True)
    assert contents(folder) == {"config.json": "new", "part-1": "new"}
    assert os.listdir(folder.parent) == ["saved"]


def test_a_file_is_no_target(folder):
    with pytest.raises(NotADirectoryError, match="config.json' is a file"):
        fill(folder / "config.json", "new", overwrite=True)


def test_the_writers_old_files_go_and_all_others_stay(folder):
    (folder / "part-2").write_text("old")
    (folder / "tokenizer.model").write_text("pieces")
    (folder / "logs" / "part-1").mkdir(parents=True)
    (folder / "logs" / "part-1" / "loss").write_text("1.5")
    os.symlink("tokenizer.model", folder / "link")
    fill(folder, "new", overwrite=True)
    assert contents(folder) == {"config.json": "new", "part-1": "new", "tokenizer.model": "pieces", "link": "pieces",
                                "logs/part-1/loss": "1.5"}
    assert (folder / "link").is_symlink()


def test_kept_files_are_copied_where_links_do_not_exist(folder, monkeypatch):
    def no_links(source, copy, follow_symlinks):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    (folder / "tokenizer.model").write_text("pieces")
    fill(folder, "new", overwrite=True)
    assert (folder / "tokenizer.model").read_text() == "pieces"


def test_what_the_block_writes_wins_over_what_was_there(folder):
    (folder / "notes").write_text("old")
    with replace_folder(folder, overwrite=True, written=WRITTEN) as new:
        (new / "notes").write_text("new")
    assert contents(folder) == {"notes": "new"}


def test_a_link_to_a_folder_stays_a_link(folder):
    link = folder.with_name("link")
    os.symlink(folder, link)
    fill(link, "new", overwrite=True)
    assert link.is_symlink() and contents(folder)["config.json"] == "new"


@pytest.mark.skipif(os.name == "nt", reason="file modes of POSIX")
def test_the_targets_permissions_stay(folder):
    folder.chmod(0o750)
    fill(folder, "new", overwrite=True)
    assert folder.stat().st_mode & 0o777 == 0o750


def test_the_working_folder_is_not_swapped_away(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for target in (".", "..", folder):
        with pytest.raises(ValueError, match="working folder"):
            fill(target, "new", overwrite=True)
    assert contents(folder) == {"config.json": "old", "part-1": "old"}


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_target_as_it_was(folder, interruption):
    for target in (folder, folder.with_name("new")):
        with pytest.raises(interruption), replace_folder(target, overwrite=True, written=WRITTEN) as new:
            (new / "config.json").write_text("half")
            raise interruption
        assert contents(folder) == {"config.json": "old", "part-1": "old"}
        assert os.listdir(folder.parent) == ["saved"]


def test_new_files_are_on_disk_before_the_swap(folder, monkeypatch):
    flushed, rename = [], os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))

    def check(source, destination):
        assert len(flushed) == 2
        rename(source, destination)

    monkeypatch.setattr(os, "rename", check)
    fill(folder, "new", overwrite=True)
    assert sorted(flushed) == sorted(path.stat().st_ino for path in folder.iterdir())


def test_a_failing_swap_puts_the_old_folder_back(folder, monkeypatch):
    rename = os.rename

    def refuse_new(source, destination):
        if str(source).endswith("-new"):
            raise OSError("no")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", refuse_new)
    with pytest.raises(OSError, match="no"):
        fill(folder, "new", overwrite=True)
    assert contents(folder) == {"config.json": "old", "part-1": "old"}
    assert os.listdir(folder.parent) == ["saved"]


def fill_and_die(target: Path, renames: int, monkeypatch) -> None:
    """Stop after so many renames as a killed process would: nothing is tidied up."""
    rename, done = os.rename, []

    def rename_or_die(source, destination):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(rename(source, destination))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename_or_die)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        try:
            fill(target, "new", overwrite=True)
        except KeyboardInterrupt:
            pass


@pytest.mark.parametrize(("renames", "survivor", "said"), [
    (0, "old", "-new; this unfinished copy was deleted"),
    (1, "new", r"-new \(complete\) and .*-old; .*-new is now .*saved"),
    (2, "new", "-old; these replaced files were deleted"),
])
def test_the_next_call_says_what_a_killed_one_left(folder, monkeypatch, renames, survivor, said):
    (folder / "README.md").write_text("mine")
    fill_and_die(folder, renames, monkeypatch)
    assert folder.exists() == (renames != 1) and len(os.listdir(folder.parent)) == 2
    if not folder.exists():
        with pytest.raises(FileNotFoundError, match="interrupted save left .*-new and .*-old"):
            find_folder(folder)

    with pytest.warns(UserWarning, match=f"an interrupted save left .*{said}"), pytest.raises(FileExistsError):
        fill(folder, "third")
    assert os.listdir(folder.parent) == ["saved"]
    assert contents(folder) == {"config.json": survivor, "part-1": survivor, "README.md": "mine"}
    fill(folder, "third", overwrite=True)  # nothing more to say
    assert contents(folder) == {"config.json": "third", "part-1": "third", "README.md": "mine"}


def test_an_old_folder_alone_is_put_back(folder, monkeypatch):
    fill_and_die(folder, 1, monkeypatch)
    shutil.rmtree(next(path for path in folder.parent.iterdir() if path.name.endswith("-new")))
    with pytest.warns(UserWarning, match="-old; .*-old is now .*saved"), pytest.raises(FileExistsError):
        fill(folder, "third")
    assert contents(folder) == {"config.json": "old", "part-1": "old"}


def test_an_empty_folder_made_after_a_kill_loses_nothing(folder, monkeypatch):
    fill_and_die(folder, 1, monkeypatch)
    folder.mkdir()  # as scripts do before they save
    with pytest.warns(UserWarning, match="-new is now .*saved"), pytest.raises(FileExistsError):
        fill(folder, "third")
    assert contents(folder) == {"config.json": "new", "part-1": "new"}


def test_a_folder_filled_after_a_kill_leaves_the_choice_to_its_owner(folder, monkeypatch):
    fill_and_die(folder, 1, monkeypatch)
    folder.mkdir()
    (folder / "tokenizer.model").write_text("pieces")
    before = contents(folder.parent)
    with pytest.raises(FileExistsError, match="interrupted save left .*-old .* and .*-new .*other content"):
        fill(folder, "third", overwrite=True)
    assert contents(folder.parent) == before and len(before) == 5

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lfmri_runtime
from lfmri_runtime.errors import TryAgainLater
from lfmri_runtime.files import (
    atomic_write,
    check_writable,
    create_binary,
    open_binary,
    read_up_to,
    sha256_file,
    write_json,
    write_text,
)

RUNTIME = Path(lfmri_runtime.__file__).parents[1]


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(RUNTIME)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def raising(code: int):
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_atomic_write_renames_a_whole_file_and_keeps_its_suffixes(tmp_path: Path) -> None:
    target = tmp_path / "sub-1.enhanced.nii.gz"
    with atomic_write(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".tmp.sub-1.enhanced.nii.gz")
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["sub-1.enhanced.nii.gz"]


def test_two_writers_of_one_name_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        assert first != second
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert names(tmp_path) == ["a"]


def test_a_new_file_gets_the_ordinary_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_any_exception_removes_the_temporary_file_and_keeps_the_old_one(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")

    def write() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_the_bytes_reach_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    write_text(tmp_path / "a", "x")
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("place", [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_full_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, place: tuple[object, str]
) -> None:
    monkeypatch.setattr(*place, raising(code))
    with pytest.raises(TryAgainLater, match=r"disk full.*free some space") as caught:
        write_text(tmp_path / "a", "x")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EIO])
def test_a_place_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(Path, "replace", raising(code))
    with pytest.raises(TryAgainLater, match=r"a\.json: not writable.*check that its folder"):
        write_text(tmp_path / "a.json", "x")
    assert names(tmp_path) == []


def test_a_missing_folder_is_not_writable(tmp_path: Path) -> None:
    with pytest.raises(TryAgainLater, match="not writable"):
        write_text(tmp_path / "none" / "a", "x")


def test_a_file_as_folder_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TryAgainLater, match="not writable"):
        write_text(tmp_path / "file" / "a", "x")


def test_another_files_error_inside_the_block_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "input").read_bytes()


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), check_writable])
def test_a_folder_and_a_device_are_never_replaced(tmp_path: Path, write) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(TryAgainLater, match="it is a folder"):
        write(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TryAgainLater, match="not a regular file"):
        write(tmp_path / "pipe")
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "store" / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "real").read_text() == "new"


def test_a_real_file_size_limit_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    code = (
        "import resource, sys; from pathlib import Path; from lfmri_runtime.files import write_text\n"
        "from lfmri_runtime.errors import TryAgainLater\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_text(Path(sys.argv[1]), 'x' * 100_000)\n"
        "except TryAgainLater as error: print(error)"
    )
    process = python(code, tmp_path / "a.txt")
    out, err = process.communicate(timeout=60)
    assert "disk full" in out, err
    assert names(tmp_path) == []


def test_a_killed_run_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from lfmri_runtime.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    process = python(code, tmp_path / "new")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "new").exists()
    assert [name[0] for name in names(tmp_path)] == ["."]


def test_check_writable_makes_the_folder_and_leaves_no_file(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "out.nii.gz")
    assert names(tmp_path / "a" / "b") == []


def test_check_writable_leaves_an_old_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    check_writable(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "old"


def test_check_writable_finds_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TryAgainLater, match="not writable"):
        check_writable(tmp_path / "file" / "deeper" / "out")


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "disk full"), (errno.EACCES, "not writable"), (errno.EROFS, "not writable")]
)
def test_check_writable_finds_out_by_trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    monkeypatch.setattr(Path, "touch", raising(code))
    with pytest.raises(TryAgainLater, match=words):
        check_writable(tmp_path / "out")


def test_sha256_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "1\n2\r\nµT\n")
    assert (tmp_path / "a").read_bytes() == "1\n2\r\nµT\n".encode()


def test_json_keeps_the_order_of_its_keys_and_ends_in_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": 1, "a": [0.1, "µ"]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"z": 1, "a": [0.1, "µ"]}
    assert text.index("z") < text.index('"a"')
    assert text.endswith("}\n")
    assert "µ" in text


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_refuses_what_it_cannot_hold(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"score": number})
    assert names(tmp_path) == []


def test_packed_bytes_depend_neither_on_time_nor_on_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("a.gz", "b.gz")):
        monkeypatch.setattr(time, "time", lambda number=number: 1e9 + 1e6 * number)
        with create_binary(tmp_path / name, pack=True) as stream:
            stream.write(b"voxels" * 1000)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("pack", [False, True])
def test_bytes_come_back(tmp_path: Path, pack: bool) -> None:
    content = os.urandom(2_500_000)
    with create_binary(tmp_path / "a", pack=pack) as stream:
        stream.write(content)
    with open_binary(tmp_path / "a", unpack=pack) as stream:
        assert read_up_to(stream, 2_000_000) == content[:2_000_000]
        assert read_up_to(stream, 10**12) == content[2_000_000:]
        assert read_up_to(stream, 1) == b""
    assert ((tmp_path / "a").read_bytes() == content) is not pack

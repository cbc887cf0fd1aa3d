"""Files: whole or not at all whatever happens, checksums, numbers that are not believed; the safetensors format."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from torch_lsh import io
from torch_lsh.data import synthetic_xmc
from torch_lsh.io import check_can_write, load_archive, load_safetensors, replacing, save_archive, save_safetensors
from torch_lsh.models import TextClassifier, XMCClassifier

PREVIOUS = Path(__file__).parent / "data" / "previous"

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.arange(3, dtype=torch.int64),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "half": torch.tensor([1.5, 2.0], dtype=torch.bfloat16),
    "t": torch.arange(6, dtype=torch.int32).view(2, 3).T,
}


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def test_round_trip(tmp_path):
    save_safetensors(TENSORS, tmp_path / "a", {"key": "välue"})
    tensors, metadata = load_safetensors(tmp_path / "a")
    assert same(tensors, TENSORS)
    assert metadata == {"key": "välue"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # no temporary file is left


def test_files_are_those_of_the_package(tmp_path):
    package = pytest.importorskip("safetensors.torch")
    save_safetensors(TENSORS, tmp_path / "ours", {"key": "value"})
    assert same(package.load_file(tmp_path / "ours"), TENSORS)
    package.save_file({k: v.contiguous() for k, v in TENSORS.items()}, tmp_path / "theirs", {"key": "value"})
    tensors, metadata = load_safetensors(tmp_path / "theirs")
    assert same(tensors, TENSORS)
    assert metadata == {"key": "value"}


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"{", b"", "Expecting property name"),
        (b"[]", b"", "cut off, damaged"),
        (b"\xff", b"", "cut off, damaged"),
        ({"a": 1}, b"", "cut off, damaged"),
        ({"a": entry("I3")}, b"1234", "a has dtype I3"),
        ({"a": entry(shape=(2,))}, b"1234", r"a has shape \[2\] in 4 bytes"),
        ({"a": entry(shape=(-1,), offsets=(4, 0))}, b"1234", "wanted whole numbers"),
        ({"a": entry(shape=(True,))}, b"1234", "wanted whole numbers"),
        ({"a": entry(offsets=(4, 8))}, b"12345678", "a begins at 4; wanted 0"),
        ({"a": entry(), "b": entry()}, b"1234", "b begins at 0; wanted 4"),
        ({"a": entry()}, b"123", "should end at"),
        ({"a": entry()}, b"12345", "should end at"),
        ({"__metadata__": {"a": 1}}, b"", "the metadata are not strings"),
    ],
)
def test_damaged_files(tmp_path, header, data, words):
    with pytest.raises(ValueError, match=words):
        load_safetensors(write(tmp_path / "a", header, data))


def test_every_shorter_file_is_refused(tmp_path):
    save_safetensors({"a": torch.ones(3)}, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for size in range(len(content)):
        (tmp_path / "a").write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut off, damaged"):
            load_safetensors(tmp_path / "a")


def test_a_header_longer_than_the_file(tmp_path):
    with pytest.raises(ValueError, match="cut off, damaged"):
        load_safetensors(write(tmp_path / "a", {}, length=2**60))


@pytest.mark.parametrize("shape", [(2**63, 0), (2**70, 0), (0, 2**62, 2**62)])
def test_shapes_that_no_tensor_has(tmp_path, shape):
    with pytest.raises(ValueError, match=r"a has shape .*; wanted at most"):
        load_safetensors(write(tmp_path / "a", {"a": entry(shape=shape, offsets=(0, 0))}))


# --- checksums --------------------------------------------------------------------------------------------------------


def flips(content, step):
    """The content with one bit changed, at places all over it."""
    for place in range(0, len(content), step):
        yield content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def test_a_flipped_bit_in_safetensors_is_found(tmp_path):
    path = tmp_path / "a"
    save_safetensors({"a": torch.arange(40.0)}, path, {"format": "torch_lsh.test/1"})
    content = path.read_bytes()
    for changed in flips(content, 1):
        path.write_bytes(changed)
        with pytest.raises(ValueError):
            load_safetensors(path, ["torch_lsh.test/1"])


def test_a_flipped_bit_in_an_archive_is_found_or_harmless(tmp_path):
    """Zip files have padding and dates, which nothing reads."""
    path, tensor = tmp_path / "a", torch.arange(40.0)
    save_archive({"format": "torch_lsh.test/1", "a": tensor}, path)
    content = path.read_bytes()
    data = content.index(tensor.numpy().tobytes())
    found = 0
    for place in [*range(0, len(content), 11), *range(data, data + 160)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            loaded = load_archive(path, "torch_lsh.test/1")
        except ValueError:
            found += 1
        else:
            assert torch.equal(loaded["a"], tensor)
            assert not data <= place < data + 160
    assert found > 160


def test_files_of_a_format_need_their_checksum(tmp_path):
    metadata = {"format": "torch_lsh.test/2"}
    path = write(tmp_path / "a", {"__metadata__": metadata})
    assert load_safetensors(path) == load_safetensors(path, ["torch_lsh.test/3", "torch_lsh.test/2"]) == ({}, metadata)
    with pytest.raises(ValueError, match=r"the metadata have no crc32"):
        load_safetensors(path, ["torch_lsh.test/2", "torch_lsh.test/1"])
    with pytest.raises(ValueError, match=r"has the format torch_lsh.test/2; wanted torch_lsh.test/3"):
        load_safetensors(path, ["torch_lsh.test/3"])


# --- archives ---------------------------------------------------------------------------------------------------------


def test_archives_that_expand_are_refused_before_they_do(tmp_path):
    path = tmp_path / "a"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 100_000_000)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="is compressed; wanted an archive without compression"):
        load_archive(path)


def test_tensors_larger_than_their_bytes_are_refused(tmp_path):
    for tensor in (torch.zeros(1).expand(2**50), torch.zeros(4).as_strided((2**20, 4), (0, 1))):
        save_archive({"format": "torch_lsh.test/1", "list": [{"a": tensor}]}, tmp_path / "a")
        with pytest.raises(ValueError, match=r"a tensor of shape \[.*\] has (4|16) bytes"):
            load_archive(tmp_path / "a")


def test_what_a_file_is_instead(tmp_path):
    save_safetensors({}, tmp_path / "a", {"format": "torch_lsh.test/1"})
    save_archive({"format": "torch_lsh.other/1"}, tmp_path / "b")
    with pytest.raises(ValueError, match=r"a has the format torch_lsh.test/1; wanted torch_lsh.other/1"):
        load_archive(tmp_path / "a", "torch_lsh.other/1")
    with pytest.raises(ValueError, match=r"b has the format torch_lsh.other/1; wanted torch_lsh.test/1"):
        load_safetensors(tmp_path / "b", ["torch_lsh.test/1"])


# --- whole or not at all ----------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The names of the calls that put a file on the disk, in their order; ``fail_at`` raises in one of them."""

    class Calls(list):
        fail_at = None

    calls = Calls()

    def recorded(name, function, describe):
        def call(*arguments):
            calls.append((name, describe(*arguments)))
            if calls.fail_at == len(calls):
                raise OSError("the disk is gone")
            return function(*arguments)

        return call

    def opened(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return "folder" if path.is_dir() else "temporary" if ".tmp" in path.name else path.name

    monkeypatch.setattr(os, "fsync", recorded("fsync", os.fsync, opened))
    monkeypatch.setattr(os, "replace", recorded("replace", os.replace, lambda source, target: Path(target).name))
    return calls


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    save_safetensors(TENSORS, tmp_path / "a")
    assert calls == [("fsync", "temporary"), ("replace", "a"), ("fsync", "folder")]
    calls.clear()
    save_archive({"format": "x"}, tmp_path / "b")
    assert calls == [("fsync", "temporary"), ("replace", "b"), ("fsync", "folder")]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_whatever_fails_the_file_is_the_old_or_the_new_one(tmp_path, calls, failing):
    path = tmp_path / "a"
    path.write_text("old")
    calls.fail_at = failing
    with pytest.raises(OSError, match="the disk is gone"), replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == ("new" if failing == 3 else "old")
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_two_writers_of_one_file(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a"]


def test_links_stay_links(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    with replacing(tmp_path / "link") as temporary:
        assert temporary.parent == tmp_path / "folder"
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_text() == "new"


HOLDS = """
import sys
from torch_lsh.io import sole_writer
with sole_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "run.x.pt"
    other = tmp_path / ".run.x.0123456789abcdef.tmp.pt"  # of run.x.pt, and not of run.pt
    child = subprocess.Popen([sys.executable, "-c", HOLDS, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    other.touch()
    with pytest.raises(BlockingIOError, match=r"run.x.pt is being written by another run"), io.sole_writer(path):
        pass
    with io.sole_writer(tmp_path / "run.pt"):
        assert other.exists()
    child.kill()
    child.communicate()
    with io.sole_writer(path):
        assert not other.exists()
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_is_found_at_once(tmp_path):
    for path, kind, words in (
        (tmp_path / "no" / "a", FileNotFoundError, "there is no folder"),
        (tmp_path, IsADirectoryError, "it is a folder"),
        (Path("/dev/null"), FileExistsError, "it is a device or a pipe"),
        (Path("/proc/a"), OSError, "/proc/a cannot be written: .* in folder /proc"),
    ):
        with pytest.raises(kind, match=words):
            check_can_write(path)
    check_can_write(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_only_files_of_ours_are_replaced(tmp_path):
    path = tmp_path / "a"
    path.touch()
    check_can_write(path, "torch_lsh.test/2")  # nothing is lost
    for content in (b"1 2 3\n", b"PK", b"\0" * 8 + b"{", b"[" * 20):
        path.write_bytes(content)
        with pytest.raises(FileExistsError, match=r"a exists and is not a file of torch_lsh, so it is not overwritten"):
            check_can_write(path, "torch_lsh.test/2")
    for save in (save_archive, lambda content, path: save_safetensors({}, path, content)):
        save({"format": "torch_lsh.test/1"}, path)
        check_can_write(path, "torch_lsh.test/2")
        with pytest.raises(FileExistsError, match=r"a exists and has the format torch_lsh.test/1"):
            check_can_write(path, "torch_lsh.other/1")


# --- the previous version ---------------------------------------------------------------------------------------------


def test_files_of_the_previous_version():
    """Written by version 0.1.0, formats ``TextClassifier/2``, ``XMCClassifier/1`` and ``XMCClassifier.fit/1``."""
    expected = json.loads((PREVIOUS / "expected.json").read_text())
    for name in ("text_2", "text_2_neighbours"):
        model = TextClassifier.load(PREVIOUS / f"{name}.safetensors")
        probabilities = model.predict_proba(["good film", "long, bad"])
        torch.testing.assert_close(torch.from_numpy(probabilities), torch.tensor(expected[name]))
    train, _ = synthetic_xmc(40, 0, 30, 20)
    scores, classes = XMCClassifier.load(PREVIOUS / "xmc_1.pt").predict(train, k=3)
    assert classes.tolist() == expected["classes"]
    torch.testing.assert_close(scores, torch.tensor(expected["scores"]))


def test_a_run_of_the_previous_version_is_refused(tmp_path):
    (tmp_path / "run.pt").write_bytes((PREVIOUS / "xmc_run_1.pt").read_bytes())
    train, _ = synthetic_xmc(40, 0, 30, 20)
    model = XMCClassifier(30, 20, hidden=4)
    with pytest.raises(ValueError, match=r"has the format torch_lsh\.XMCClassifier\.fit/1; wanted torch_lsh\.fit/2"):
        model.fit(train, epochs=2, batch_size=10, progress=False, checkpoint=tmp_path / "run.pt")

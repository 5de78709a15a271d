"""Names of classes that people take for one another."""

import unicodedata
from collections.abc import Iterable


def refuse_look_alikes(names: Iterable[str], where: str) -> None:
    """Raise ValueError if two names differ only in blanks, invisible characters or how Unicode writes a letter."""
    seen: dict[str, str] = {}
    for name in names:
        # Cf: of no width, such as U+200B and a byte order mark
        visible = "".join(
            letter for letter in name if unicodedata.category(letter) not in ("Cf", "Cc") or letter.isspace()
        )
        key = " ".join(unicodedata.normalize("NFKC", visible).split())
        if (other := seen.setdefault(key, name)) != name:
            raise ValueError(
                f"{where}: the classes {other!r} and {name!r} look the same: give them one name, or names that differ"
            )

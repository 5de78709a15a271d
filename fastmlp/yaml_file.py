"""YAML files of settings, read strictly: no key twice, no number that YAML reads otherwise than it is written."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

# YAML 1.1 reads 010 as 8, 1:30 as 90 and 2024-01-31 as a date. To it, 08 and 1:75 are text.
_SURPRISES = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?|[0-9]{4}-[0-9]+-[0-9]+([Tt ].*)?")
MAX_VALUES = 100_000  # of a file with its aliases written out: a few lines can stand for billions
MAX_BYTES = 1_000_000
MAX_DIGITS = 100  # Python does not print integers of thousands
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, None if it is empty.

    Raises OSError, or ValueError that names the file and, where there is one, the line: for what is not YAML, a key
    that is there twice, and plain values such as 010 and 1:30, which have to be quoted or written as they are meant.
    """
    import yaml  # --help need not wait for it

    if not path.is_file():
        raise FileNotFoundError(f"{path} is {'a folder' if path.is_dir() else 'missing'}: expected a YAML file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is not a file of settings: it has {path.stat().st_size:,} bytes")
    content = path.read_bytes()
    try:
        loader = _strict_loader()(content.decode("utf-8"))
        return loader.load()
    except (OSError, MemoryError):
        raise
    except RecursionError as error:
        raise ValueError(f"{path} is not a file of settings: it is nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        kind = ":" if isinstance(error, yaml.constructor.ConstructorError) else " is not a YAML file:"
        problem = " ".join(str(error.problem or error.context).split())
        raise ValueError(f"{path}{line}{kind} {_cut(problem, 200)}") from error
    except UnicodeDecodeError as error:
        raise _not_text(path, content, error.start) from error
    except yaml.reader.ReaderError as error:
        raise _not_text(path, content, len(content.decode()[: error.position].encode())) from error
    except Exception as error:  # PyYAML's scanner raises many kinds
        problem = _cut(" ".join(str(error).split()), 200)
        raise ValueError(f"{path}, line {loader.line + 1} is not a YAML file: {problem}") from error


def _strict_loader() -> Any:
    """Return the class of PyYAML's safe loader, stricter: its `load` refuses what read_yaml tells of."""
    import yaml

    def refuse(node: Any, why: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(problem=why, problem_mark=node.start_mark)

    def count(node: Any, counts: dict[int, int]) -> int:
        """Return the number of values that a node stands for."""
        if id(node) not in counts:
            counts[id(node)] = MAX_VALUES  # while it is counted: an alias of what it is in stands for ever more
            children = [child for entry in node.value for child in (entry if isinstance(entry, tuple) else (entry,))]
            total = 1 + sum(count(child, counts) for child in children if not isinstance(node, yaml.ScalarNode))
            if total >= MAX_VALUES:
                refuse(node, f"{MAX_VALUES:,} values or more, or an alias of what it is in")
            if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:str":
                if _SURPRISES.fullmatch(node.value):
                    refuse(node, f"{_cut(node.value)} is ambiguous: quote it, or write it without leading 0 and colon")
                if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
                    refuse(node, f"{_cut(node.value)} is no number of a setting: it has {len(node.value):,} digits")
            counts[id(node)] = total
        return counts[id(node)]

    class Strict(yaml.SafeLoader):
        def load(self) -> Any:
            try:
                node = self.get_single_node()
                if node is None:
                    return None
                count(node, {})
                return self.construct_document(node)
            finally:
                self.dispose()

        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            if isinstance(node, yaml.MappingNode):
                seen = set()
                for key, _ in node.value:
                    if not isinstance(key, yaml.ScalarNode):
                        refuse(key, "a key must be one word")
                    name = "<<" if key.tag == "tag:yaml.org,2002:merge" else self.construct_object(key)
                    if not isinstance(name, Hashable):
                        refuse(key, "a key must be one word")
                    if name in seen:
                        refuse(key, f"{_cut(key.value)!r} is there twice")
                    seen.add(name)
            return super().construct_mapping(node, deep)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (yaml.YAMLError, RecursionError, MemoryError):
                raise
            except Exception as error:  # of many kinds, for tags that do not fit
                refuse(node, f"{_cut(str(node.value))!r} does not fit its tag, {node.tag} ({error})")

    return Strict


def _not_text(path: Path, content: bytes, at: int) -> ValueError:
    line = content.count(b"\n", 0, at) + 1
    return ValueError(
        f"{path}, line {line} is not a YAML file: expected text in UTF-8, found the byte 0x{content[at]:02x}"
    )


def _cut(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."

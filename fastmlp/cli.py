"""Strict command lines on fastargs, and errors that end in one clear line and exit code 2.

fastargs alone accepts abbreviated flags, drops unknown fields of a config file, takes "False" for true, and exits
with code 0 on a bad value. Here each of these is an error.
"""

import argparse
import atexit
import dataclasses
import errno
import gc
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fastargs import Param, Section
from fastargs.config import Config
from fastargs.validation import Checker

from .messages import shown
from .yaml_file import read_yaml

Settings = TypeVar("Settings")


def setting(default: Any, checker: Checker, text: str) -> Any:
    """Return a field of a settings dataclass: its default, the checker of its values, its help text with the unit."""
    return dataclasses.field(default=default, metadata={"checker": checker, "help": text})


class IntField(Checker):
    """An integer from `min` to `max`."""

    def __init__(self, min: int = 0, max: int = 2**31 - 1):
        self.min, self.max = min, max

    def check(self, value: Any) -> int:
        number = int(str(value))  # str first: int(3.7) would be 3
        if not self.min <= number <= self.max:
            raise ValueError
        return number

    def help(self) -> str:
        return f"an integer of at least {self.min}" + ("" if self.max == 2**31 - 1 else f" and at most {self.max}")


class FloatField(Checker):
    """A finite number from `min` to `max`."""

    # Products with others of this size are still float32.
    LARGEST = 1e30

    def __init__(self, min: float = 0.0, max: float = LARGEST, above: bool = False):
        self.min, self.max, self.above = min, max, above

    def check(self, value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not self.min <= number <= self.max or (self.above and number == self.min):
            raise ValueError
        return number

    def help(self) -> str:
        low = f"above {self.min:g}" if self.above else f"of at least {self.min:g}"
        return f"a number {low}" + ("" if self.max == self.LARGEST else f" and at most {self.max:g}")


class BoolField(Checker):
    """0 or 1, also false or true."""

    def check(self, value: Any) -> bool:
        return {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}[str(value).lower()]

    def help(self) -> str:
        return "0 or 1"


class ChoiceField(Checker):
    """One of some words."""

    def __init__(self, *choices: str):
        self.choices = choices

    def check(self, value: Any) -> str:
        if isinstance(value, bool):  # YAML reads on and off as truths
            value = "on" if value else "off"
        if str(value) not in self.choices:
            raise ValueError
        return str(value)

    def help(self) -> str:
        return "one of " + ", ".join(self.choices)


class StrField(Checker):
    def check(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        return str(value)

    def help(self) -> str:
        return "text"


class PathField(StrField):
    """A path, as text or of pathlib, with ~ replaced by the home folder; "" stays what it is."""

    def check(self, value: Any) -> str:
        text = os.path.expanduser(super().check(os.fspath(value) if isinstance(value, os.PathLike) else value))
        if text.startswith("~"):  # there is no such user
            raise ValueError
        return text

    def help(self) -> str:
        return "a path"


def summary(docstring: str | None) -> str:
    """Return the first line of a script's docstring, which `python -OO` drops."""
    return (docstring or "").partition("\n")[0]


def path(text: str) -> Path:
    """Return a path of the command line, with ~ or ~user replaced by the home folder, which shells do only in part.

    Raises argparse.ArgumentTypeError if there is no such folder.
    """
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise argparse.ArgumentTypeError(f"{text}: there is no such home folder; a name that begins with ~ is ./{text}")
    return Path(expanded)


def parse(
    settings_type: type[Settings],
    description: str,
    presets: Callable[[Settings], Mapping[str, Any]] = lambda settings: {},
    argv: Sequence[str] | None = None,
) -> Settings:
    """Return the settings of the command line (`--cfg.FIELD=VALUE`) and of config files (`--config-file x.yaml`).

    The command line wins over config files, these over `presets`, these over the dataclass's defaults. `presets`
    receives the settings as they are without it. Any mistake is printed and ends the process with exit code 2.
    """
    fields = {f"cfg.{field.name}": field for field in dataclasses.fields(settings_type)}  # type: ignore[arg-type]
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, usage="%(prog)s [--config-file YAML] [--cfg.FIELD=VALUE ...]"
    )
    parser.add_argument(
        "--config-file",
        "-C",
        action="append",
        default=[],
        metavar="YAML",
        help="a YAML file with any of the fields below; may be repeated, later ones win",
    )
    for flag, field in fields.items():
        checker, text = field.metadata["checker"], field.metadata["help"]
        text = f"{text}; {checker.help()} (default: {field.default})".replace("%", "%%")
        kind = type(checker).__name__.removesuffix("Field").upper()
        parser.add_argument(f"--{flag}", metavar=kind, help=text)

    given: dict[str, Any] = {}
    files: dict[str, str] = {}  # what a flag's value is from, for errors
    try:
        words = sys.argv[1:] if argv is None else argv
        _refuse_old_names(settings_type, [word[6:].partition("=")[0] for word in words if word.startswith("--cfg.")])
        arguments = vars(parser.parse_args(words))
        for file in arguments.pop("config_file"):
            values = read_settings(Path(os.path.expanduser(file)), settings_type)
            values = {f"cfg.{name}": value for name, value in values.items()}
            given.update(values)
            files.update(dict.fromkeys(values, file))
        flags = {flag: value for flag, value in arguments.items() if value is not None}
        given.update(flags)
        files = {flag: file for flag, file in files.items() if flag not in flags}
        _from_files.clear()
        for flag, file in files.items():
            is_text = isinstance(fields[flag].metadata["checker"], StrField)
            _from_files[flag] = (file, os.path.expanduser(str(given[flag])) if is_text else "")
        settings = _collect(settings_type, fields, given, files)
        preset = {f"cfg.{name}": value for name, value in presets(settings).items()}
        return _collect(settings_type, fields, {**preset, **given}, files)
    except (ValueError, OSError) as error:
        fail(error)


def from_mapping(settings_type: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Return settings with these values, the other fields at their defaults.

    Raises ValueError for an unknown field or a value that its checker refuses.
    """
    fields = {f"cfg.{field.name}": field for field in dataclasses.fields(settings_type)}  # type: ignore[arg-type]
    _refuse_old_names(settings_type, values)
    if unknown := [str(name) for name in values if f"cfg.{name}" not in fields]:
        raise ValueError(f"unknown field {', '.join(unknown)}; --help lists the fields")
    if empty := [name for name, value in values.items() if value is None]:
        raise ValueError(f"no value for {', '.join(empty)}")
    return _collect(settings_type, fields, {f"cfg.{name}": value for name, value in values.items()})


def _refuse_old_names(settings_type: Any, names: Iterable[Any]) -> None:
    """Raise ValueError for names of fields that an earlier version had; settings_type.renamed_fields lists them."""
    fields = {field.name for field in dataclasses.fields(settings_type)}
    old = {name: new for name, new in settings_type.renamed_fields.items() if name not in fields and new in fields}
    if renamed := [f"{name} is now called {old[name]}" for name in dict.fromkeys(map(str, names)) if name in old]:
        raise ValueError("; ".join(renamed))


def read_settings(path: Path, settings_type: Any) -> dict[str, Any]:
    """Return the fields of a YAML file, with or without `cfg:` above them.

    Raises ValueError for an unknown field, one without a value, or an old name of one.
    """
    fields = {field.name for field in dataclasses.fields(settings_type)}
    content = read_yaml(path) or {}
    if isinstance(content, dict) and set(content) == {"cfg"}:
        content = content["cfg"]
    if not isinstance(content, dict):
        raise ValueError(f"{path} must map fields to values, such as 'epochs: 3'")
    try:
        _refuse_old_names(settings_type, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    unknown = [str(name) for name in content if name not in fields]
    if unknown:
        raise ValueError(f"{path}: unknown field {', '.join(unknown)}; --help lists the fields")
    empty = [name for name, value in content.items() if value is None]
    if empty:
        raise ValueError(f"{path}: no value for {', '.join(empty)}")
    return content


def _collect(
    settings_type: type[Settings],
    fields: Mapping[str, Any],
    given: Mapping[str, Any],
    files: Mapping[str, str] | None = None,  # of the values that are from one
) -> Settings:
    files = files or {}
    config = Config()
    Section("cfg", config_descriptor=config).params(
        **{
            field.name: Param(field.metadata["checker"], field.metadata["help"], field.default)
            for field in fields.values()
        }
    )
    config.collect(dict(given))
    mistakes = []
    for path in config.validate(mode="errordict"):
        value = config.content.get(path)
        flag = ".".join(path)
        name = f"{files[flag]}: {path[-1]}" if flag in files else f"--{flag}"
        mistake = f"{name}: expected {config.entries[path].checker.help()}, got {_cut(value)}"
        new = settings_type.renamed_values.get(path[-1], {}).get(str(value))  # type: ignore[attr-defined]
        mistakes.append(mistake + (f", which is now called {new}" if new else ""))
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return settings_type(**{field.name: config[flag] for flag, field in fields.items()})


def _cut(value: Any) -> str:
    """Return a value as an error quotes it: at most 80 characters, since a mistyped one may be of any length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_is_loading = False  # whether this process is a script's, and has loaded nothing yet
_from_files: dict[str, tuple[str, str]] = {}  # the parsed fields that are from config files, and their texts


def _config_file(message: str) -> str:
    """Return the config file whose field or text an error is about, "" if there is none or the error names it."""
    for flag, (file, text) in _from_files.items():
        is_about = f"--{flag}=" in message or (len(text) > 1 and text in message)
        if is_about and file not in message:
            return f"{file}: "
    return ""


def fail(error: BaseException) -> NoReturn:
    """Print one line to stderr and end the process with exit code 2."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = OSError(f"the disk is full ({error.filename or 'while writing'}): free some space and run again")
    with suppress(OSError):  # stderr may be gone
        text = str(error) or "out of memory"  # a MemoryError of Python's own has none
        text = f"{_config_file(text)}{text}".replace("\n", "\\n").replace("\r", "\\r")  # names may hold either
        print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2)


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _open_streams() -> None:
    """Open closed standard streams on /dev/null, and let no text fail to be printed.

    A file that took the number of a closed stderr would get what C libraries write there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # lines at once, so that a closed pipe is noticed
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def _end_by_signals(received: list[int]) -> None:
    """Raise KeyboardInterrupt or SystemExit on a signal, so that all clean up, and note its number."""

    def end(number: int, frame: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # by nohup, or a shell's &
            signal.signal(number, end)


def _on_unraisable(lost: Any, received: list[int]) -> None:
    """Send a signal again whose exception Python has dropped, since it came while an object was being finalised."""
    if received and isinstance(lost.exc_value, KeyboardInterrupt | SystemExit):
        again = threading.Timer(0.05, os.kill, (os.getpid(), received[-1]))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


@contextmanager
def loading() -> Iterator[None]:
    """Let modules load without the garbage collector: it finds nothing there, and takes 0.5 s of torch's 2.5.

    In a script, it leaves alone from then on what the first call has loaded.
    """
    global _is_loading
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _is_loading:
            gc.freeze()
            _is_loading = False
        if was_on:
            gc.enable()


def _check_folder() -> None:
    """Raise FileNotFoundError if the current folder was deleted: libraries would end in words of their own."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise FileNotFoundError("the current folder was deleted: go to another one") from error


def run(main: Callable[[], None]) -> None:
    """Run a script's main. Bad input, a missing extra, a full disk or memory, or a diverged run ends in one line.

    Its exit code is 2. A signal (Ctrl-C, SIGTERM, SIGHUP) ends it in exit code 128 + its number, at any time, and a
    closed pipe of the output in 141. FASTMLP_TRACEBACK=1 shows where an error came from.
    """
    global _is_loading
    if main.__module__ == "__main__":
        _is_loading = True
        atexit.register(gc.freeze)  # or Python's end looks through all that torch is, three times: 0.5 s
    _open_streams()
    warnings.formatwarning = lambda message, *_: f"notice: {message}\n"
    _from_files.clear()
    received: list[int] = []
    _end_by_signals(received)
    # OpenMP's idle threads spin. Next to two busy processes, its default trained at 4.0 k images/sec, this value at
    # 6.3 k; alone, both at 21 k to 23 k (Fashion-MNIST, 2 cores). It works only if set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    hook, sys.unraisablehook = sys.unraisablehook, lambda lost: _on_unraisable(lost, received)
    try:
        _check_folder()
        with shown():
            main()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that Python's last flush does not fail, too
        raise SystemExit(128 + signal.SIGPIPE) from None
    except BaseException as error:
        if not received:
            _explain(error)
        # Whatever it became: modules that are loading make other errors of it.
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # Python takes a while to end
        with suppress(OSError):
            print("\ninterrupted", file=sys.stderr)
        raise SystemExit(128 + received[0]) from None
    finally:
        sys.unraisablehook = hook


def _explain(error: BaseException) -> NoReturn:
    """End the process with what `run` says of an error; raise it if it is a fault of ours."""
    try:
        raise error
    except (ValueError, OSError, FloatingPointError, MemoryError, ModuleNotFoundError) as error:
        if os.environ.get("FASTMLP_TRACEBACK") == "1":
            traceback.print_exc()
        fail(error)
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", None)  # of a run that has said so, after a checkpoint
        if number is None:
            print("\ninterrupted", file=sys.stderr)
        raise SystemExit(128 + (number or signal.SIGINT)) from None

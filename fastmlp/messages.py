"""What the library says while it works: nothing when it is called from Python, lines and bars in scripts.

Lines go through logging's "fastmlp" logger: information to stdout, notices (warnings) to stderr.
"""

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger("fastmlp")
logger.addHandler(logging.NullHandler())  # without it, Python would print warnings
_shown, _lock = 0, threading.Lock()  # how many `shown` are open


class _Console(logging.Handler):
    """Prints records; errors of the streams, such as a closed pipe, reach the caller."""

    def emit(self, record: logging.LogRecord) -> None:
        is_notice = record.levelno >= logging.WARNING
        text, stream = f"{'notice: ' * is_notice}{record.getMessage()}", sys.stderr if is_notice else sys.stdout
        if "tqdm" in sys.modules:  # there may be a bar, which is drawn again below the text
            sys.modules["tqdm"].tqdm.write(text, file=stream)
        else:
            print(text, file=stream)


_console = _Console()


@contextmanager
def shown(on: bool = True) -> Iterator[None]:
    """Print lines and show progress bars inside the `with`, if `on`. Several may be open, of several threads, too.

    Meanwhile lines do not go to the handlers of other loggers, which might print them again.
    """
    global _shown
    if not on:
        yield
        return
    with _lock:
        _shown += 1
        if _shown == 1:
            logger.addHandler(_console)
            logger.setLevel(logging.INFO)
            logger.propagate = False
    try:
        yield
    finally:
        with _lock:
            _shown -= 1
            if not _shown:
                logger.removeHandler(_console)
                logger.setLevel(logging.NOTSET)
                logger.propagate = True


def progress_bar(*args: Any, **options: Any) -> "tqdm[Any]":
    """Return a tqdm bar, a widget in a notebook; a disabled one outside of `shown`. TQDM_DISABLE is obeyed."""
    if "ipykernel" in sys.modules:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm(*args, **options if _shown else {**options, "disable": True})


@contextmanager
def called_from_python(verbose: bool) -> Iterator[None]:
    """Show lines and bars only if `verbose`, and let errors name arguments (`epochs=3`) instead of flags."""
    try:
        with shown(verbose):
            yield
    except (ValueError, OSError, MemoryError, ArithmeticError, ModuleNotFoundError) as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (re.sub(r"--cfg\.(\w+)", r"\1", error.args[0]),)
        raise

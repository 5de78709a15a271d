"""What the library says while it works: nothing when it is called from Python, lines and bars in scripts.

Lines go through logging's "fastmlp" logger: information to stdout, notices (warnings) to stderr.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger("fastmlp")
logger.addHandler(logging.NullHandler())  # without it, Python would print warnings
_shown = 0  # how many `shown` are open


class _Console(logging.Handler):
    """Prints records; errors of the streams, such as a closed pipe, reach the caller."""

    def emit(self, record: logging.LogRecord) -> None:
        is_notice = record.levelno >= logging.WARNING
        text, stream = f"{'notice: ' * is_notice}{record.getMessage()}", sys.stderr if is_notice else sys.stdout
        if "tqdm" in sys.modules:  # there may be a bar, which is drawn again below the text
            sys.modules["tqdm"].tqdm.write(text, file=stream)
        else:
            print(text, file=stream)


@contextmanager
def shown(on: bool = True) -> Iterator[None]:
    """Print lines and show progress bars inside the `with`, if `on`. May be nested."""
    global _shown
    if not on or _shown:
        _shown += on
        try:
            yield
        finally:
            _shown -= on
        return
    handler, level = _Console(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    _shown = 1
    try:
        yield
    finally:
        _shown = 0
        logger.setLevel(level)
        logger.removeHandler(handler)


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

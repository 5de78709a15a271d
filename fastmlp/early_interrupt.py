"""Ctrl-C while a script's first modules are loading, before `cli.run` takes over: one line, no traceback."""

import os
import sys
from types import TracebackType


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        if sys.stderr:
            sys.stderr.write("\ninterrupted\n")
    else:
        sys.__excepthook__(kind, error, trace)


def install() -> None:
    """Install it if the program is a script of this repository: other programs have their own ways."""
    script = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or "")
    if script.startswith(os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep):
        sys.excepthook = _report


install()

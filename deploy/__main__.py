"""`python -m deploy`: see `deploy.cli`."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def command_line() -> int:
    """Imported only now, so that a very early Ctrl-C is answered like any other."""
    from deploy.cli import main

    return main()


def run(command: Callable[[], int] = command_line) -> NoReturn:
    """Run the command and end at once.

    Without exit handlers: everything is stopped by now, and Ray's would wait for what is gone.
    """
    code: object = 1
    try:
        code = command()
    except SystemExit as wish:
        code = wish.code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    run()

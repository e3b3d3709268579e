"""`python -m deploy`: see `deploy.cli`."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from deploy.cli import main


def run(command: Callable[[], int] = main) -> NoReturn:
    """Run the command and end at once.

    Without exit handlers: everything is stopped by now, and Ray's would wait for what is gone.
    """
    code: object = 1
    try:
        code = command()
    except SystemExit as wish:
        code = wish.code
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    run()

"""How every command ends: exit codes, and errors as sentences instead of tracebacks."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from configs.errors import RefusedInput

EXIT_FINISHED = 0
EXIT_REFUSED = 2


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run `main(argv)` and leave with its exit code.

    Input that was refused becomes one message on standard error and exit code 2, in every command.
    An interrupt leaves with 130, a closed pipe on standard output (`... | head`) quietly with 141.
    """
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except RefusedInput as refused:
        sys.stderr.write(f"error: {refused}\n")
        code = EXIT_REFUSED
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Python would complain once more when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)

"""One process of the pool: makes parts of the units it is sent, until the pool hangs up.

Started as `python -m t5x_scale.data.building.worker FD`, with a socket to the pool as file descriptor FD. A plain
process, not one of multiprocessing's: those run the main program's file again, and with it whatever that imports.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from t5x_scale.core.errors import UserError
from t5x_scale.data import vocabulary_codecs
from t5x_scale.data.building.parts import write_part
from t5x_scale.data.building.work import process


def serve(pool: Connection) -> None:
    """Answers every unit with ("done", PartInfo), ("refused", message for the user) or ("failed", traceback)."""
    # The classes of filters may come from where the main program finds them.
    sys.path[:] = pool.recv()
    try:
        directory, options = pool.recv()
        fingerprint = options.fingerprint
        pool.send(("ready", None))
        while True:
            unit = pool.recv()
            part = process(unit, options)
            pool.send(("done", write_part(directory, unit.index, part, unit=unit.digest, options=fingerprint)))
    except UserError as error:
        pool.send(("refused", str(error)))
    except (EOFError, ConnectionError):
        raise
    except Exception:
        pool.send(("failed", traceback.format_exc()))


def main() -> None:
    """Answers units with parts until the pool hangs up."""
    # Of an interrupt at the terminal every process hears; the pool decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    vocabulary_codecs.use_one_thread()
    # The pool hung up: it has what it wanted, or it was killed.
    with contextlib.suppress(EOFError, ConnectionError):
        serve(Connection(int(sys.argv[1])))
    # Nothing is left to tidy, and destructors take their time.
    os._exit(0)


if __name__ == "__main__":
    main()

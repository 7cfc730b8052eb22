"""`cacovid serve` with these arguments. For each line of its standard input it prints what memory is in use.

Each answer is one line of JSON: `in_use`, bytes that the C library has handed out, and `python_blocks`, which the interpreter has.
"""

import json
import os
import sys
import threading

from benchmarks.heap import in_use


def _answer(told: int) -> None:
    for _ in sys.stdin:
        found = {"in_use": in_use(), "python_blocks": sys.getallocatedblocks()}
        os.write(told, f"{json.dumps(found)}\n".encode())


def main() -> None:
    """Serve. What the server itself prints goes to the error output."""
    told = os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_answer, args=(told,), daemon=True).start()
    sys.argv = ["cacovid", "serve", *sys.argv[1:]]
    from cacovid_cli.main import main as command

    command()


if __name__ == "__main__":
    main()

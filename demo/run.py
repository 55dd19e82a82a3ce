"""`python -m demo.run`, or `make demo`: the show that demo/show.py describes."""

import sys

from cli.interrupts import end_in_order, leave_at_once


def main() -> None:
    leave_at_once()
    from demo.show import run

    # From here on there are processes to stop.
    end_in_order()
    try:
        code = run()
    finally:
        leave_at_once()
    sys.exit(code)


if __name__ == "__main__":
    main()

"""`lorikeet ...` and `python -m cli ...`."""

from cli.interrupts import leave_at_once
from cli.standard_streams import prepare_streams


def main() -> None:
    leave_at_once()
    prepare_streams()
    from cli.app import app

    try:
        app(prog_name="lorikeet")
    finally:
        leave_at_once()


if __name__ == "__main__":
    main()

"""`lorikeet ...` and `python -m cli ...`."""

from cli.interrupts import leave_at_once


def main() -> None:
    leave_at_once()
    from cli.app import app

    try:
        app(prog_name="lorikeet")
    finally:
        leave_at_once()


if __name__ == "__main__":
    main()

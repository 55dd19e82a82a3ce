"""`lorikeet ...` and `python -m cli ...`."""

from cli.app import app


def main() -> None:
    app(prog_name="lorikeet")


if __name__ == "__main__":
    main()

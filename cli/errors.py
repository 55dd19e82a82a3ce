"""Failures as the command line shows them: one line and an exit code."""

EXIT_ERROR = 1
EXIT_USAGE = 2


class CliError(Exception):
    """Ends a command.

    Args:
        message: what was wrong and what to do.
        code: canonical gRPC code's name, where a service answered with one.
        reason: stable identifier for programs.
        exit_code: of the process.
    """

    def __init__(
        self, message: str, *, code: str = "", reason: str = "CLI", exit_code: int = EXIT_ERROR
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.code} ({self.reason}): {self.message}" if self.code else self.message


def usage_error(message: str) -> CliError:
    """What was typed, or a setting, cannot work."""
    return CliError(message, reason="USAGE", exit_code=EXIT_USAGE)


def why(error: Exception) -> str:
    """What an error says; of the operating system's without number and path, which stand beside it."""
    return (isinstance(error, OSError) and error.strerror) or str(error)

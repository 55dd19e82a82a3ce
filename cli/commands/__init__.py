"""The commands: what each takes, asks for and shows. Nothing heavy is imported before one runs."""

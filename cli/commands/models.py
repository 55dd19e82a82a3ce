"""`lorikeet models`: the base model that a server offers."""

import typer

from cli.commands.options import AsJson, ConfigFile, Target, Timeout, connection
from cli.output import print_fields, print_json, reporting, to_json

app = typer.Typer(
    help="Look at the model that a server offers.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.callback()
def models() -> None:
    """Look at the model that a server offers."""


@app.command()
def show(
    as_json: AsJson = False, target: Target = None, timeout: Timeout = None, config: ConfigFile = None
) -> None:
    """Show the base model, its limits and its default sampling.

    [bold]Example[/bold]

        lorikeet models show --json
    """
    with reporting(as_json=as_json):
        from cli import client
        from lorikeet.v1 import generation_pb2 as pb

        async def call(opened: client.Client) -> pb.GetModelResponse:
            return await opened.generation.GetModel(pb.GetModelRequest(), timeout=opened.connection.deadline)

        model = client.run(connection(target, timeout, config), call)
        if as_json:
            print_json(to_json(model))
            return
        sampling = to_json(model.default_sampling, defaults=False)
        print_fields(
            {
                "name": model.name,
                "type": model.model_type,
                "digest": model.base_digest,
                "context": f"{model.context_length} tokens",
                "vocabulary": f"{model.vocab_size} tokens",
                "end tokens": ", ".join(str(token) for token in model.eos_token_ids) or "none",
                "chat template": "yes" if model.has_chat_template else "no",
                "sampling": ", ".join(f"{name} {value}" for name, value in sampling.items()) or "defaults",
                "adapters": f"{model.adapter_slots} resident at once, rank up to {model.max_lora_rank}",
                "version": model.version,
            }
        )

"""One validated configuration for every command: flags over environment over YAML file over defaults.

The sections `frontend`, `executor` and `store` have exactly the fields of the services' own config classes,
so a setting is declared, documented and checked in one place. Importing this module takes pydantic's time:
commands do it when they run, not when `--help` is printed.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from adapter_store.config import StoreConfig
from cli.errors import CliError, usage_error, why
from cli.serving.places import DEFAULT_TARGET
from executor.config import ExecutorConfig
from frontend.config import FrontendConfig
from rpc.strict_yaml import load_yaml

_ANY_HOST = ("0.0.0.0", "[::]")  # noqa: S104 - recognised, not bound


class Section(BaseModel):
    """Settings of one service that were given, by any source; the rest keep the service's defaults."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def given(self) -> dict[str, Any]:
        """Field to value, for the fields that were given."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            name: int(value) if isinstance(value, ByteSize) else value
            for name, value in values.items()
            if value is not None
        }


def _section(config_class: type[Any]) -> type[Section]:
    hints = get_type_hints(config_class)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        # Sizes may be written as "512MiB".
        hint: Any = ByteSize if field.name.endswith("_bytes") else hints[field.name]
        if get_origin(hint) is tuple:
            hint = Annotated[hint, BeforeValidator(_read_list)]
        fields[field.name] = (hint | None, None)
    return create_model(config_class.__name__.replace("Config", "Section"), __base__=Section, **fields)


def _read_list(value: Any) -> Any:
    """One value is a list of one; several are written as YAML writes them, [a, b]."""
    if not isinstance(value, str):
        return value
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError("it is not a list as YAML writes it") from error


FrontendSection = _section(FrontendConfig)
ExecutorSection = _section(ExecutorConfig)
StoreSection = _section(StoreConfig)


class Settings(BaseSettings):
    """Everything that can be set. In the environment: LORIKEET_FIELD and LORIKEET_SECTION__FIELD.

    Args:
        model: folder of the base model; the default of `executor.model_dir` and `frontend.model_dir`.
        listen: where `lorikeet serve` answers.
        adapters: name to source; loaded by `lorikeet serve` once it is up.
        adapter_roots: folders, besides those sources, that adapters may be loaded from.
        data_dir: where `lorikeet serve` keeps adapters between runs; None picks a folder of the user's.
        target: the server that client commands call; where `listen` says, when empty.
        timeout: seconds that a client's call may take; 0 waits for ever.
        token: what client commands show to the server.
        tls_ca: authorities that client commands trust; given, they speak TLS.
        tls_cert: certificate that client commands show where one is asked for.
        tls_key: its private key.
        log_level: of the services that `lorikeet serve` starts.
    """

    model_config = SettingsConfigDict(
        env_prefix="LORIKEET_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        protected_namespaces=(),
    )

    model: Path | None = None
    listen: str = DEFAULT_TARGET
    adapters: dict[str, str] = Field(default_factory=dict)
    adapter_roots: Annotated[list[Path], NoDecode, BeforeValidator(_read_list)] = Field(default_factory=list)
    data_dir: Path | None = None
    target: str = ""
    timeout: float = Field(default=600.0, ge=0, allow_inf_nan=False)
    token: str = Field(default="", repr=False)
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"
    # The three classes are made from the services' config classes above.
    frontend: FrontendSection = Field(default_factory=FrontendSection)  # pyright: ignore[reportInvalidTypeForm]
    executor: ExecutorSection = Field(default_factory=ExecutorSection)  # pyright: ignore[reportInvalidTypeForm]
    store: StoreSection = Field(default_factory=StoreSection)  # pyright: ignore[reportInvalidTypeForm]

    @model_validator(mode="after")
    def _call_what_listens(self) -> Self:
        if not self.target:
            host, _, port = self.listen.rpartition(":")
            self.target = f"127.0.0.1:{port}" if host in _ANY_HOST else self.listen
        return self

    @classmethod
    def load(cls, flags: Mapping[str, Any], file: Path | None = None) -> "Settings":
        """Merges all sources.

        Args:
            flags: nested as the fields are; None values count as not given.
            file: YAML, or None.

        Raises:
            CliError: naming each field that is wrong and where it can be set.
        """
        values = _read_file(file) if file else {}

        class Merged(cls):
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, InitSettingsSource(settings_cls, values)

        try:
            return Merged(**_without_none(flags))
        except ValidationError as error:
            raise _explain(error) from error
        except SettingsError as error:
            raise usage_error(_explain_variable(error)) from error

    def frontend_config(self, **defaults: Any) -> FrontendConfig:
        """The frontend's settings; `defaults` stand below every source. Raises CliError."""
        return _build("frontend", FrontendConfig, {"model_dir": self.model, **defaults}, self.frontend)

    def executor_config(self, **defaults: Any) -> ExecutorConfig:
        """The executor's settings; `defaults` stand below every source. Raises CliError."""
        return _build("executor", ExecutorConfig, {"model_dir": self.model, **defaults}, self.executor)

    def store_config(self, **defaults: Any) -> StoreConfig:
        """The store's settings; `defaults` stand below every source. Raises CliError."""
        return _build("store", StoreConfig, defaults, self.store)


def _build(name: str, config_class: type[Any], defaults: Mapping[str, Any], section: Section) -> Any:
    values = {**_without_none(defaults), **section.given()}
    for field in dataclasses.fields(config_class):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            flag = field.name.replace("_", "-")
            raise usage_error(
                f"{name}.{field.name} is missing: give --{flag}, "
                f"LORIKEET_{name.upper()}__{field.name.upper()}, or `{field.name}` under `{name}:` in a file"
            )
    try:
        return config_class(**values)
    except (ValueError, TypeError) as error:
        raise usage_error(f"{name}: {error}") from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        values = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise usage_error(f"cannot read the settings file {file}: {why(error)}") from error
    except yaml.YAMLError as error:
        raise usage_error(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise usage_error(f"{file} must hold a mapping of settings, such as `model: ./checkpoint`")
    # A section whose lines are all comments.
    return _without_none(values)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }


def _explain_variable(error: SettingsError) -> str:
    """What to do about a variable that holds several settings and is no JSON."""
    field = re.search(r'field "(\w+)"', str(error))
    if field is None:
        return f"settings from the environment: {error}"
    name = f"LORIKEET_{field[1].upper()}"
    return f"{name} must be a JSON object; or set one thing alone, as {name}__NAME=VALUE"


def _explain(error: ValidationError) -> CliError:
    parts: list[str] = []
    for detail in error.errors():
        field = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            parts.append(f"{field}: there is no such setting")
        else:
            parts.append(f"{field}: {detail['msg'][:1].lower()}{detail['msg'][1:]}, not {detail['input']!r}")
    return usage_error("; ".join(parts))

"""Every setting as a flag, with its variable and default in the help: made from `Settings` itself."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from service.settings import ENV_CONFIG, Settings
from tide_core.contracts.errors import InvalidInputError

_SECRETS = frozenset(
    name for name, info in Settings.model_fields.items() if info.annotation == SecretStr | None
)
"""Settings whose values are never shown."""


def with_setting_flags(run: Callable[[Settings], None], name: str, text: str) -> Callable[..., None]:
    """A command that takes every setting as an option and calls ``run`` with the outcome.

    Flags win over environment variables, those over the file (`--config`), that over defaults.
    """

    def command(**flags: Any) -> None:
        from tide.cli.failures import clear_errors

        with clear_errors():
            run(read_settings(flags.pop("config"), flags))

    parameters = [_config_parameter()] + [
        _parameter(field, info) for field, info in Settings.model_fields.items()
    ]
    command.__name__, command.__doc__ = name, text
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def read_settings(config: str | None, flags: dict[str, Any]) -> Settings:
    """The settings that flags, environment and file give together.

    Raises:
        InvalidInputError: a value is wrong or the file is; ``param`` names the setting.
    """
    if config is not None:
        os.environ[ENV_CONFIG] = config
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "extra_forbidden":
            message = f"There is no setting '{field}'; `tide up --help` lists them."
        else:
            given = "" if field in _SECRETS else f" (got {first['input']!r})"
            message = f"{field}: {first['msg']}{given}."
        raise InvalidInputError(message, code="bad_setting", param=field) from None
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"The settings file cannot be read: {error}", code="bad_setting", param=ENV_CONFIG
        ) from None


def _config_parameter() -> inspect.Parameter:
    option = typer.Option("--config", help=f"Settings file, TOML or YAML. [env: {ENV_CONFIG}]")
    return _keyword("config", Annotated[str | None, option])


def _parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    flag = "--" + name.replace("_", "-")
    text = " ".join((info.description or "").split())
    default = "" if info.default is None else f" [default: {info.default}]"
    text = f"{text} [env: TIDE_{name.upper()}]{default}"
    if info.annotation is bool:
        option = typer.Option(f"{flag}/--no-{flag[2:]}", help=text)
        return _keyword(name, Annotated[bool | None, option])
    option = typer.Option(flag, help=text, metavar="SECRET" if name in _SECRETS else "VALUE")
    return _keyword(name, Annotated[str | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

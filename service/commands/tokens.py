"""`tide tokens`: who may use the interface. The commands work on the database, next to the control plane."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tide.cli.failures import clear_errors
from tide.cli.options import Output, OutputOption

if TYPE_CHECKING:
    from datetime import datetime

    from service.access.tables import ClientTokenRow
    from service.db.session import Database

app = typer.Typer(
    help="Make, list and revoke the tokens of the REST interface and the page.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Result = TypeVar("Result")
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="SQLAlchemy URL; default: SQLite in the data folder. [env: TIDE_DATABASE_URL]",
        show_default=False,
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Data folder of the control plane. [env: TIDE_DATA_DIR]", show_default=".tide"
    ),
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", help="Settings file, TOML or YAML. [env: TIDE_CONFIG]", show_default=False),
]


@app.command()
def create(
    *,
    name: Annotated[str, typer.Option(help="Name of the token; jobs that are posted with it show the name.")],
    role: Annotated[str, typer.Option(help="viewer: may read; editor: may do everything.")],
    expires_days: Annotated[
        int | None,
        typer.Option(min=1, max=36_500, help="Days until it expires; default: never.", show_default=False),
    ] = None,
    database_url: DatabaseOption = None,
    data_dir: FolderOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a token and print it. It cannot be shown again."""
    with clear_errors(output):
        from datetime import timedelta

        from service.access import client_tokens as service
        from service.access.tables import Role
        from tide.cli.output import print_json
        from tide_core.contracts.errors import InvalidInputError

        if role not in tuple(Role):
            raise InvalidInputError(
                f"There is no role '{role}': take {' or '.join(Role)}.", code="bad_role", param="role"
            )
        lifetime = None if expires_days is None else timedelta(days=expires_days)

        async def make(database: Database) -> str:
            async with database.write() as session:
                return await service.create(session, name, Role(role), lifetime)

        token = _with_database(make, config, database_url, data_dir)
        if output is Output.JSON:
            print_json({"name": name, "role": role, "token": token})
        else:
            typer.echo(f"The token '{name}' ({role}). Keep it: it cannot be shown again.", err=True)
            typer.echo(token)


@app.command("list")
def list_tokens(
    *,
    database_url: DatabaseOption = None,
    data_dir: FolderOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List all tokens ever made, without their secrets."""
    with clear_errors(output):
        from datetime import datetime

        from service.access import repository
        from tide.cli.output import age, print_json, print_table

        def age_of(moment: str | None) -> str:
            return age(None if moment is None else datetime.fromisoformat(moment))

        async def read(database: Database) -> list[dict[str, Any]]:
            async with database.read() as session:
                return [_describe(row) for row in await repository.all_tokens(session)]

        tokens = _with_database(read, config, database_url, data_dir)
        if output is Output.JSON:
            print_json(tokens)
            return
        rows = [
            [
                token["name"],
                token["role"],
                token["status"],
                age_of(token["created_at"]),
                age_of(token["last_used_at"]),
                token["expires_at"] or "never",
            ]
            for token in tokens
        ]
        titles = ["NAME", "ROLE", "STATUS", "AGE", "LAST USED", "EXPIRES"]
        print_table(titles, rows, when_empty="There are no tokens yet. `tide tokens create` makes one.")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the token, as `tide tokens list` shows it.")],
    *,
    database_url: DatabaseOption = None,
    data_dir: FolderOption = None,
    config: ConfigOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """End a token for good: its next request is refused."""
    with clear_errors(output):
        from service.access import client_tokens as service
        from tide.cli.output import print_json

        async def end(database: Database) -> datetime:
            async with database.write() as session:
                return await service.revoke(session, name)

        moment = _with_database(end, config, database_url, data_dir).isoformat()
        if output is Output.JSON:
            print_json({"name": name, "revoked_at": moment})
        else:
            typer.echo(f"The token '{name}' was revoked at {moment}.")


def _with_database(
    action: Callable[[Database], Awaitable[Result]],
    config: str | None,
    database_url: str | None,
    data_dir: Path | None,
) -> Result:
    """Run an action on the control plane's database, which is brought to its newest schema as at a start.

    Raises:
        TideError: ``database_unusable``.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from service.commands.setting_flags import read_settings
    from service.db.session import Database
    from service.migrations.migrate import upgrade
    from tide_core.contracts.errors import TideError

    folder = None if data_dir is None else str(data_dir)
    settings = read_settings(config, {"database_url": database_url, "data_dir": folder})

    async def run() -> Result:
        database = Database(settings.resolved_database_url)
        try:
            if settings.migrate_on_start:
                await upgrade(database)
            return await action(database)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except (SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]  # the rest is the statement with its values
        raise TideError(
            f"The database cannot be used: {reason}. Give the control plane's own with --database-url or "
            "TIDE_DATABASE_URL, or its folder with --data-dir.",
            code="database_unusable",
        ) from None


def _describe(row: ClientTokenRow) -> dict[str, Any]:
    from service.clock import utc_now

    moments = ("created_at", "last_used_at", "expires_at", "revoked_at")
    return {"name": row.name, "role": str(row.role), "status": str(row.status(utc_now()))} | {
        moment: None if getattr(row, moment) is None else getattr(row, moment).isoformat()
        for moment in moments
    }

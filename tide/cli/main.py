"""`tide`: the command line.

Only what the invoked command needs is imported, so that `tide --help` answers at once. The commands here need
nothing but the client; those that need a control plane or torch are plugins (`tide.cli.plugins`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from tide.cli import jobs, plan, plugins, teachers

OWN = frozenset({"jobs", "plan", "teachers"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `tide` script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    build_app(next((word for word in given if not word.startswith("-")), None))(given, prog_name="tide")


def build_app(invoked: str | None) -> typer.Typer:
    """Build the application: the invoked command in full, other commands by name where they are expensive."""
    app = typer.Typer(
        help="Distils diffusion language models as a service.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: brackets stay brackets
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.add_typer(jobs.app, name="jobs")
    app.command("teachers")(teachers.list_teachers)
    app.command("plan")(plan.plan_job)
    if invoked not in OWN:
        plugins.add_plugins(app, invoked)
    return app


if __name__ == "__main__":
    main()

"""Alembic's entry point; `service.migrations.migrate` hands it an open connection."""

from __future__ import annotations

from alembic import context

from service.migrations.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()

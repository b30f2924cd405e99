"""Tells Alembic which connection to migrate: the one that runner.store.upgrade hands over."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], render_as_batch=True, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()

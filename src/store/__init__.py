"""The cold path into PostgreSQL: server, migrations, writer, verification, queries."""

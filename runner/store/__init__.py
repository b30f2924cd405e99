"""The database of a home: tables, migrations, and the queries of each of its readers and writers."""

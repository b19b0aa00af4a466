"""Vision towers that hand out the queries and keys of their select layer."""

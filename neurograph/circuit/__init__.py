"""A circuit as a result: a graph to query, tables, and a file."""

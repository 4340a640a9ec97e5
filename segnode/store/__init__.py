"""Objects and rows: the only package with SQL or object paths."""

"""A self-contained HTML page on one or several runs or GLUE suites."""

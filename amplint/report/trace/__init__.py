"""What `amplint trace` found, for people: a summary for the terminal, and a page. Both read the report's dictionary, of
JSON values only (graph/report.py says which), so that neither needs torch."""

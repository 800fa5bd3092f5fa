"""What `amplint verify` found, for people: terminal, Markdown, one page. All from the Report dict of verifying.py."""

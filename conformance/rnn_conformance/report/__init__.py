"""What a run found, as data, as lines of JSON, as a table and as a page."""

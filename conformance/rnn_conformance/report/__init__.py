"""The results of a run, as data, as lines of JSON, as a table and as a page."""

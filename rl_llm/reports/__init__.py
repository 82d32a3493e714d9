"""Pages for people: the report of a run, and the charts and templates that reports share."""

"""Dashboard: a page to watch an engine by, of a gateway or of a run."""

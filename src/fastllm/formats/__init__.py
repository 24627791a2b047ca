"""Files of rows: what goes in and what comes out, in which format and from where; see docs/formats.md."""

"""Studies: many runs described by a configuration file, each trained and judged once, by processes or by Ray."""

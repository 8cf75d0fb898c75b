"""Studies: many runs described by a configuration file, each trained and evaluated once, by processes or by Ray."""

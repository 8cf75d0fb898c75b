"""Do the methods differ? The tests that the paper uses, on its tables and on the studies."""

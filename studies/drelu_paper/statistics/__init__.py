"""Whether methods differ over many blocks of results: the tests that the paper uses, after Demsar (JMLR 7, 2006)."""

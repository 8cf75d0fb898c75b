"""Tables and pictures of the studies, from their records only."""

"""What came of the studies: tables and pictures, from their records only."""

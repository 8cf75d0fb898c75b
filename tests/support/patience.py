"""How long a test waits for another thread or process before it calls that hanging, also on a busy machine."""

PATIENCE = 900  # seconds

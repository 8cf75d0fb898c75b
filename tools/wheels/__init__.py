"""Wheels: made, looked into, and tried in fresh environments without a compiler."""

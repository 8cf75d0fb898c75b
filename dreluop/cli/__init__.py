"""The command ``python -m dreluop``."""

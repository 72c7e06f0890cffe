"""The hub: memory and decisions. Read settings, tables, access, services, api, commands."""

__version__ = "0.1.0"

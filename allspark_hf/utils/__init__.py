"""Small things that every folder may use: text, tables, files, fields of arguments, the machine."""

__version__ = "0.1.0"

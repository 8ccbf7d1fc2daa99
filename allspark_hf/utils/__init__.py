"""Small things that every folder may use: text of errors, JSON and image files, Markdown tables, argument fields."""

__version__ = "0.1.0"

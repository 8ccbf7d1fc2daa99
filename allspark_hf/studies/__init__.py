"""Studies: tables of several runs that differ in one thing."""

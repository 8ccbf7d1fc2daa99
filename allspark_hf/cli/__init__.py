"""The command line: arguments, recipes, and the dry run. Nothing else imports this folder."""

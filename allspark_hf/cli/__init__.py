"""The command `allspark`: a file for each subcommand, their arguments and help. Nothing else imports this folder."""

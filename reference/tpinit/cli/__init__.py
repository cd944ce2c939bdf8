"""The `tpinit` command. A subcommand imports the packages that it needs only when it runs."""

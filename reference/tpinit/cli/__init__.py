"""The `tpinit` command. Each subcommand imports the room it shows only when it runs."""

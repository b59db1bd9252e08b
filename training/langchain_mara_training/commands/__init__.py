"""The `mara` command, one module per subcommand. Heavy libraries are imported only when a command runs."""

"""The `mara` command, one module per subcommand. Nothing heavy is imported before a command runs."""

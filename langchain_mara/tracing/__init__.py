"""What was decided and why, token by token: records, statistics, HTML and plots."""

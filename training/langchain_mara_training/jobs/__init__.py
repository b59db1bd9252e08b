"""What the commands do, on a run folder."""

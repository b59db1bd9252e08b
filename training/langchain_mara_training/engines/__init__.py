"""Where the blocks of a job are computed: in this process, or by workers of Ray Data."""

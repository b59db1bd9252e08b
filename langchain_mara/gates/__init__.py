"""Gates, which say at which positions an agent is asked."""

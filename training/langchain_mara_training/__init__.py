"""Makes agents for `langchain_mara`; nothing public yet (labels, fitting and rewards come next)."""

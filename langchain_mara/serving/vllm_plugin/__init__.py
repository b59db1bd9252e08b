"""A plugin for vLLM, which keeps its own loop and takes only the agent."""

"""The parts of the LangChain chat model: conversations, tool choice, running, structured output, profile."""

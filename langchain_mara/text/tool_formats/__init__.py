"""The formats in which families of models write tool calls, and how answers in them are read."""

"""`mara serve`: models and agents behind OpenAI's HTTP interface, with a page that shows the agent at work."""

"""OpenAI's requests and responses, and what this library adds to them."""

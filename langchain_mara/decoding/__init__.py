"""The decode loop: token ids in, decisions out. It knows no text and no LangChain."""

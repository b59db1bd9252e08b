"""The bundled model and its agent. `langchain_mara_training.demo` holds the code that makes them."""

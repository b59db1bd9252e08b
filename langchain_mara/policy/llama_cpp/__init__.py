"""The frozen model run by llama.cpp: GGUF files, on laptops and CPUs. Its rows are sequences of one context."""

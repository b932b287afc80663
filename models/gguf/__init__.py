"""GGUF files (llama.cpp's format) of the supported families as Hugging Face checkpoint folders."""

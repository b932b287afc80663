"""Thirty requests to the gateway, by the package openai, by LangChain's chat model and by curl. See `__main__`.

What the clients' own environment runs (`cases`, `by_openai`, `by_langchain`) imports nothing of this project.
"""

"""An OpenAI-compatible HTTP server at the user's side: its requests become private generations."""

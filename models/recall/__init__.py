"""Tiny trained language models that recall one record of a long document."""

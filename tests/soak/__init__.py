"""Soak: many sessions in the network lab while roles are killed and restarted; see docs/lab.md."""

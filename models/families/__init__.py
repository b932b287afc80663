"""Model families, one file each: a checkpoint's config.json and how its tensors become canonical weights."""

"""Lists of questions in files: read, answered here or over Ray, written so that nothing is lost (docs/many.md)."""

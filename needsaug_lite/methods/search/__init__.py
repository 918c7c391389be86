"""Methods that search an architecture."""

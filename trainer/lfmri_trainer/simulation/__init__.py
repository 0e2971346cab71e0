"""The simulator: parameters drawn, applied, and kept in a table."""

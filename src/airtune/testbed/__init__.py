"""Problems whose constants are known exactly, and what is checked on them. NumPy; docs/theory.md, §3."""

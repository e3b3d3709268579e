"""Rows over the wire: the seam and its implementations."""

"""The pool: shards that hold experts in slots and compute the rows sent to them."""

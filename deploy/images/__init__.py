"""Container images, and what runs only in them."""

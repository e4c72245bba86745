"""A small shop: the application that the demonstration takes into maintenance."""

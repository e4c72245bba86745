"""Around the application: what a dependency does not reach, decided outside of it."""

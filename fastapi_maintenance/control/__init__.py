"""The switch over HTTP, for teams without a shell on the host."""

from .router import control_router

__all__ = ["control_router"]

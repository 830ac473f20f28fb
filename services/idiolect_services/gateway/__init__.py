"""The HTTP edge: keys, limits, JSON and problems. What is served is decided by the scorer and the store."""

from idiolect_services.gateway.app import create_app
from idiolect_services.gateway.context import Gateway, GatewayServices

__all__ = ["Gateway", "GatewayServices", "create_app"]

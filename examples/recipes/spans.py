"""OpenTelemetry, with an attribute on the spans of refused requests."""

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

from fastapi_maintenance import MaintenanceError, MaintenanceGuard

guard = MaintenanceGuard()
app = FastAPI(dependencies=[Depends(guard)], lifespan=guard.lifespan)
FastAPIInstrumentor.instrument_app(app)


@app.exception_handler(MaintenanceError)
async def refused(request: Request, error: MaintenanceError) -> Response:
    """Answer as FastAPI does, and say in the span why."""
    span = trace.get_current_span()
    span.set_attribute("maintenance.epoch", error.state.epoch)
    return await http_exception_handler(request, error)


@app.get("/prices")
async def prices() -> int:
    """Return a price."""
    return 249

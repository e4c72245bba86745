"""A job outside requests: it obeys maintenance, and a drain waits for it."""

from fastapi_maintenance import MaintenanceError, MaintenanceGuard

guard = MaintenanceGuard()
sent: list[str] = []


def send_invoices(customers: list[str]) -> int:
    """Send invoices until maintenance begins; return how many were sent."""
    done = 0
    for customer in customers:
        try:
            # Around each piece, so that a drain waits for one and not for all.
            with guard.admit():
                sent.append(customer)
        except MaintenanceError:
            break  # The next run goes on from here.
        done += 1
    return done

"""Requests that are cut off, cancelled or long, and the work that they leave."""

import contextlib
import socket

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.chaos.harness import Instance, Operator, Service, in_background
from tests.waiting import until

pytestmark = pytest.mark.chaos


def test_client_disconnects_in_a_stream(service: Service) -> None:
    """A stream whose client has left is no longer counted, and blocks no drain."""
    (worker,) = service.start()
    operator = service.settled()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", worker.port)) as client:
            client.sendall(b"GET /stream?chunks=600 HTTP/1.1\r\nHost: shop\r\n\r\n")
            assert client.recv(100)
    report = operator.drain()
    assert report.outcome == "drained", report
    assert report.seconds < 5


def test_cancelled_while_a_thread_works(service: Service) -> None:
    """A cancelled request is counted until its thread has really ended."""
    (worker,) = service.start()
    operator = service.settled()
    service.busy(worker, 2, "cancelled")
    report = operator.drain()
    assert report.outcome == "drained", report
    assert report.seconds > 1


@pytest.mark.parametrize("route", ["commit", "fails", "background", "stream"])
def test_late_work_of_a_request(
    service: Service, operator: Operator, route: str
) -> None:
    """Commits, handlers, tasks and streams are waited for like endpoints."""
    (worker,) = service.start()
    work = {"commit": "commit", "fails": "handler", "background": "task"}
    for _ in range(3):
        worker.begin(f"/{route}")
        until(lambda: service.running(work.get(route, route)))
        report = operator.drain()
        assert report.outcome == "drained", report
        operator.off()


@pytest.mark.parametrize("protocol", ["websockets", "websockets-sansio", "wsproto"])
def test_close_after_closes_websockets(service: Service, protocol: str) -> None:
    """A WebSocket that does not end is closed with 1012, and the drain ends."""
    (worker,) = service.start(command=("uvicorn", "--ws", protocol))
    operator = service.settled()
    with _socket(worker) as idle, _socket(worker) as talking:
        _echo(talking)
        report = operator.drain(0.3)
        assert report.outcome == "busy", report
        talker = in_background(lambda: _talk(talking))
        report = operator.drain(5, close_after=0.5)
        assert report.outcome == "drained", report
        assert report.seconds >= 0.4
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        talker.result()


def test_close_after_reaches_idle_workers(service: Service) -> None:
    """A worker without requests learns of the change from its keeper."""
    quiet, _ = service.start(2)
    operator = service.settled()
    with _socket(quiet) as idle:
        report = operator.drain(5, close_after=0)
        assert report.outcome == "drained", report
        assert report.seconds < 2
        with pytest.raises(ConnectionClosed):
            idle.recv(5)


def test_close_after_tells_streams(service: Service) -> None:
    """A stream that waits for closing ends by itself, with its last chunk."""
    (worker,) = service.start()
    operator = service.settled()
    answer = worker.begin("/events")
    until(lambda: service.running("events"))
    assert operator.drain(0.5).outcome == "busy"
    report = operator.drain(5, close_after=0.2)
    assert report.outcome == "drained", report
    assert answer.result() == (200, b"first,last")


def test_close_after_leaves_sync_work_alone(service: Service) -> None:
    """Work in a thread is never interrupted, however long it takes."""
    (worker,) = service.start()
    operator = service.settled()
    work = service.busy(worker, 2, "sync")
    report = operator.drain(5, close_after=0)
    assert report.outcome == "drained", report
    assert report.seconds > 1
    assert work.result()[0] == 200


def _socket(worker: Instance) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{worker.port}/socket", close_timeout=2)


def _echo(client: ClientConnection) -> None:
    client.send("hello")
    assert client.recv(5) == "hello"


def _talk(client: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            _echo(client)

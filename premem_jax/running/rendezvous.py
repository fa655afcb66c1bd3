"""A rendezvous of all processes before JAX joins them.

JAX ends a process without an exception if others are missing. So all meet on the coordinator's port first: each process
sends its index to process 0 and waits for the reply. An error names the missing processes.
"""

import contextlib
import socket
import time

from premem_jax.errors import UserError

HELLO, GO = b"premem_jax ", b"go"


def meet(coordinator: str, count: int, index: int, seconds: float) -> None:
    """Returns once all `count` processes have arrived, within `seconds`.

    Args:
      coordinator: host:port of process 0; its port is free again afterwards.
      index: index of this process.

    Raises:
      UserError: an unusable address, missing processes, or an index that two processes share.
    """
    host, _, port = coordinator.rpartition(":")
    try:
        if not host or not 0 < int(port) < 2**16:
            raise ValueError("a host, and a port from 1 to 65535")
        family, *_, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    except (OSError, ValueError, OverflowError, UnicodeError) as error:
        raise UserError(f"--coordinator={coordinator}: not the host:port of process 0 ({error})") from error
    deadline = time.monotonic() + seconds
    if index == 0:
        _gather(coordinator, family, address[1], count, deadline, seconds)
    else:
        _report(coordinator, family, address, index, deadline, seconds)


def _gather(coordinator: str, family: int, port: int, count: int, deadline: float, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError as error:
            raise UserError(
                f"--coordinator={coordinator}: port {port} cannot be used here ({error.strerror}); choose another"
            ) from error
        server.listen(count)
        here: dict[int, socket.socket] = {}
        while len(here) < count - 1:
            missing = sorted({*range(1, count)} - {*here})
            try:
                server.settimeout(max(deadline - time.monotonic(), 1e-3))
                peer = stack.enter_context(server.accept()[0])
                peer.settimeout(5)
                number = _number(peer, count)
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue  # somebody who says nothing
                raise UserError(
                    f"processes {missing} did not come within {seconds:g} s; start them, raise --join_seconds, or run "
                    "this one alone with --distributed=off"
                ) from None
            if number in here:
                raise UserError(f"--process_id={number} was given to two processes")
            if number is not None:
                here[number] = peer
        for peer in here.values():
            with contextlib.suppress(OSError):
                peer.sendall(GO)


def _number(peer: socket.socket, count: int) -> int | None:
    """The index that a connection sends; None if it is not from this run."""
    try:
        said = peer.recv(64)
    except ConnectionError:
        return None
    number = said.removeprefix(HELLO).strip()
    known = said.startswith(HELLO) and number.isdigit() and 0 < int(number) < count
    return int(number) if known else None


def _report(coordinator: str, family: int, address: tuple, index: int, deadline: float, seconds: float) -> None:
    while time.monotonic() < deadline:
        with socket.socket(family, socket.SOCK_STREAM) as caller, contextlib.suppress(OSError):
            caller.settimeout(max(deadline - time.monotonic(), 1e-3) + 1)  # process 0 gives up first, and says why
            caller.connect(address)
            caller.sendall(HELLO + str(index).encode() + b"\n")
            if caller.recv(16) == GO:
                return
        time.sleep(0.2)
    raise UserError(
        f"no word from process 0 at --coordinator={coordinator} within {seconds:g} s; is it started, and do all "
        "processes have the same --num_processes and numbers of their own?"
    )

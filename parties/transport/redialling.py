"""The dialling side's calls of a stream whose connection was lost (`parties.transport.resumable_stream`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

import grpc

from mpc.errors import MpcacheError, PeerLost, WireError
from parties.errors import Busy
from parties.events import log
from parties.transport.pieces import whole
from parties.transport.queues import Message
from parties.transport.resumable_stream import ResumableStream
from parties.transport.resumption import FIRST_PAUSE, LONGEST_PAUSE, Call, Route
from parties.wire.error_codec import from_rpc, public, said_why

LAST_SECONDS = 5.0


def dial_again(stream: ResumableStream, route: Route) -> None:
    """Dial until the stream is connected or given up; then this thread reads the stream."""
    pause = FIRST_PAUSE
    while stream.wants_call():
        try:
            found = _attempt(stream, route)
        except MpcacheError as error:
            stream.fail(error)
            return
        except Exception as error:
            stream.fail(public(error, stream.session.role))
            return
        if found is not None:
            stream.log_call()
            stream.try_line()
            stream.read(*found)
            return
        if pause >= LONGEST_PAUSE / 2 and (loss := stream.loss) is not None:
            loss.reason = route.why()
        stream.wait_until_over(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _attempt(stream: ResumableStream, route: Route) -> tuple[Iterator[Message], int] | None:
    """Make one call: its incoming stream and its epoch, None without a connection. Raises what the peer refuses it with."""
    try:
        channel = route.channel()
    except PeerLost:
        return None
    outbox: SimpleQueue[Message | None] = SimpleQueue()
    epoch, message = stream.next_request()
    outbox.put(message)
    call = route.call(channel)(whole(stream.drain(outbox)))
    timer = threading.Timer(min(10.0, max(1.0, stream.window / 3)), call.cancel)
    timer.daemon = True
    timer.start()
    began = time.monotonic()
    try:
        answer = next(call)
        if answer.WhichOneof("content") != "resumed":
            raise WireError(f"{stream.peer} sent '{answer.WhichOneof('content')}' where 'resumed' was expected")
        if stream.connected(Call(epoch, outbox, call.cancel), answer.resumed.received, route.key(channel), channel):
            return call, epoch
        raise StopIteration
    except (grpc.RpcError, StopIteration) as error:
        outbox.put(None)
        call.cancel()
        channel.close()
        if isinstance(error, grpc.RpcError) and said_why(error):
            problem = from_rpc(error, stream.peer, stream.session.step)
            if not isinstance(problem, Busy):
                raise problem from None
        log.debug("no connection to %s after %.1f s", stream.peer, time.monotonic() - began)
        return None
    except BaseException:
        outbox.put(None)
        call.cancel()
        channel.close()
        raise
    finally:
        timer.cancel()


def say_last(stream: ResumableStream, route: Route) -> None:
    """Tell the peer of a stream that was cut off at its very end how much has arrived: all. Else it would wait for that
    until its window is over. What it answers is of no consequence: it may know already, and have forgotten the stream."""
    limit, pause = time.monotonic() + min(stream.window, LAST_SECONDS), FIRST_PAUSE
    while time.monotonic() < limit:
        try:
            channel = route.channel()
        except PeerLost:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            continue
        except MpcacheError:
            return
        call = route.call(channel)(iter([stream.next_request()[1]]))
        timer = threading.Timer(LAST_SECONDS, call.cancel)
        timer.start()
        try:
            next(call)
            return
        except (grpc.RpcError, StopIteration) as error:
            if isinstance(error, grpc.RpcError) and said_why(error):
                return
            time.sleep(pause)
        finally:
            timer.cancel()
            call.cancel()
            channel.close()

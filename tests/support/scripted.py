"""A TLS server that says exactly the bytes it is told to, for clients that must survive any of them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from types import TracebackType

from tests.support import frames
from tests.support.frames import Frame
from xaps_watch.authority import LocalAuthority

Reply = Callable[[Frame], bytes | None]


class ScriptedServer:
    """Sends `greeting` to each connection, and to each frame `reply(frame)`; None ends the connection."""

    def __init__(self, authority: LocalAuthority, reply: Reply, greeting: bytes = frames.settings()) -> None:
        self.reply, self.greeting = reply, greeting
        self.got: list[Frame] = []
        self.connections = 0
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(authority.server_file)
        self._tls.set_alpn_protocols(["h2"])

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self.greeting)
            await reader.readexactly(len(frames.PREFACE))
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                frame = Frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)
                self.got.append(frame)
                said = self.reply(frame)
                if said is None:
                    return
                writer.write(said)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            return  # the client has gone
        finally:
            writer.transport.abort()

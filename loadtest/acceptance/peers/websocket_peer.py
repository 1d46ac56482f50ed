"""A WebSocket server and client on the `websockets` library.

    websocket_peer.py serve                      a server; the first line it prints is its port
    websocket_peer.py calls URI [CA ADDRESS]     what clients do; a JSON line for each. ADDRESS is where to connect, whatever the URI's host is
"""
import asyncio
import json
import os
import ssl
import sys

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve as listen

PATIENCE = 20
SEEN = {"close": None}


async def answer(connection):
    path = connection.request.path
    if path.startswith("/close/"):
        await connection.close(int(path.rsplit("/", 1)[1]), "as asked")
    elif path == "/last-close":
        await connection.send(json.dumps(SEEN["close"]))
    else:
        try:
            async for message in connection:
                await connection.send(message)
        finally:
            await connection.wait_closed()
            if path == "/remember":
                SEEN["close"] = [connection.close_code, connection.close_reason]


async def serve():
    async with listen(answer, "127.0.0.1", 0, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


async def calls(uri, ca=None, address=None):
    options = {"max_size": None, "open_timeout": PATIENCE, "additional_headers": {"x-user-id": "socket-user"}}
    if ca:
        context = ssl.create_default_context(cafile=ca)
        context.set_alpn_protocols(["http/1.1"])
        host, port = address.rsplit(":", 1)
        options |= {"ssl": context, "host": host, "port": int(port)}

    def to(path, **more):
        return connect(uri + path, **options, **more)

    def say(call, holds, figures):
        print(json.dumps({"call": call, "holds": bool(holds), "figures": figures}), flush=True)

    async with to("/echo") as socket:
        await socket.send("gr\u00fc\u00dfe")
        text = await socket.recv()
        await socket.send(bytes(range(256)))
        binary = await socket.recv()
        latency = await asyncio.wait_for(await socket.ping(b"are you there"), PATIENCE)
        say("text, binary, ping", text == "gr\u00fc\u00dfe" and binary == bytes(range(256)), f"both came back; the pong after {latency * 1000:.1f} ms")
    large = os.urandom(1024 * 1024)
    for compression in (None, "deflate"):
        async with to("/echo", compression=compression) as socket:
            await socket.send(large)
            back = await socket.recv()
            agreed = "permessage-deflate" in socket.response.headers.get("sec-websocket-extensions", "")
            say(f"1 MiB message, compression {compression}", back == large and agreed == (compression is not None), f"{len(back)} bytes there and back; deflate agreed on: {agreed}")

    async def one(number):
        async with to("/echo") as socket:
            for turn in range(10):
                await socket.send(f"{number}.{turn}")
                if await socket.recv() != f"{number}.{turn}":
                    return False
        return True

    good = sum([result is True for result in await asyncio.gather(*(one(n) for n in range(80)), return_exceptions=True)])
    say("80 handshakes at once", good == 80, f"{good} of 80 opened, had 10 messages echoed and closed")

    codes = {}
    for code in (1000, 1001, 1011, 3000, 4321):
        async with to(f"/close/{code}") as socket:
            try:
                await asyncio.wait_for(socket.recv(), PATIENCE)
            except websockets.ConnectionClosed:
                pass
            codes[code] = (socket.close_code, socket.close_reason)
    say("close codes of the server", all(seen == (code, "as asked") for code, seen in codes.items()), ", ".join(str(code) for code, _ in codes.values()) + ", with their reason")

    async with to("/remember") as socket:
        await socket.close(4002, "enough")
    seen, deadline = None, asyncio.get_running_loop().time() + PATIENCE
    while seen != [4002, "enough"] and asyncio.get_running_loop().time() < deadline:
        async with to("/last-close") as socket:
            seen = json.loads(await socket.recv())
    say("close code of the client", seen == [4002, "enough"], f"the server saw {seen}")


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    asyncio.run(serve() if verb == "serve" else calls(*arguments))

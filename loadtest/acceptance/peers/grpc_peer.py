"""A gRPC server and client on grpcio, without generated code: messages are bytes.

    grpc_peer.py serve NAME                   a server; the first line it prints is its port
    grpc_peer.py calls TARGET [CA SERVER]     every kind of call; a JSON line for each
    grpc_peer.py fail TARGET CODE COUNT       calls that the server is asked to fail; prints how they ended
    grpc_peer.py break TARGET CODE            from now on this server fails all calls of Echo
    grpc_peer.py load TARGET SECONDS          calls of many users; prints how they ended, until the time is over or standard input ends
"""
import collections
import hashlib
import json
import sys
import threading
import time
from concurrent import futures

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
PATIENCE = 20
CODES = {code.value[0]: code for code in grpc.StatusCode}
BINARY = bytes(range(256))
LARGE = bytes(range(256)) * (4 * 1024 * 4)


class Service(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name, self.broken, self.cancelled = name, None, 0
        self.handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Upload": grpc.stream_unary_rpc_method_handler(self.upload),
            "Numbers": grpc.unary_stream_rpc_method_handler(self.numbers),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Wait": grpc.unary_stream_rpc_method_handler(self.wait),
            "Cancelled": grpc.unary_unary_rpc_method_handler(lambda _, __: str(self.cancelled).encode()),
            "Break": grpc.unary_unary_rpc_method_handler(self.make_broken),
        }

    def service(self, details):
        return self.handlers.get(details.method.rsplit("/", 1)[1])

    def make_broken(self, request, _):
        self.broken = CODES.get(int(request))
        return b"ok"

    def echo(self, request, context):
        asked = dict(context.invocation_metadata())
        code = self.broken or CODES.get(int(asked.get("x-fail", 0)))
        if code is not grpc.StatusCode.OK:
            context.abort(code, "as asked: 100 % \u00fc")
        context.send_initial_metadata((("x-side", self.name),))
        if "trace-bin" in asked:
            context.set_trailing_metadata((("trace-bin", asked["trace-bin"]),))
        return request

    def upload(self, requests, _):
        digest, count = hashlib.sha256(), 0
        for request in requests:
            digest.update(request)
            count += 1
        return f"{count} {digest.hexdigest()}".encode()

    def numbers(self, request, _):
        for number in range(int(request)):
            yield str(number).encode()

    def chat(self, requests, _):
        for request in requests:
            yield b"you said " + request

    def wait(self, _, context):
        over = threading.Event()

        # Counted here: the library drops this generator, and does not resume it, when a call is
        # cancelled before the server has learned that its first message was sent.
        def ended():
            self.cancelled += 1
            over.set()

        if not context.add_callback(ended):
            ended()
        yield b"begun"
        over.wait(2 * PATIENCE)


def serve(name):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=OPTIONS)
    server.add_generic_rpc_handlers((Service(name),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def channel_to(target, ca=None, name=None):
    if ca is None:
        return grpc.insecure_channel(target, options=OPTIONS)
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    return grpc.secure_channel(target, credentials, options=[*OPTIONS, ("grpc.ssl_target_name_override", name)])


def calls(target, ca=None, name=None):
    channel = channel_to(target, ca, name)
    user = (("x-user-id", "grpc-user"),)
    echo, upload = channel.unary_unary("/edge.Edge/Echo"), channel.stream_unary("/edge.Edge/Upload")
    numbers, chat, wait = channel.unary_stream("/edge.Edge/Numbers"), channel.stream_stream("/edge.Edge/Chat"), channel.unary_stream("/edge.Edge/Wait")
    cancelled = channel.unary_unary("/edge.Edge/Cancelled")

    def say(call, holds, figures):
        print(json.dumps({"call": call, "holds": bool(holds), "figures": figures}), flush=True)

    def until_cancelled(count):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            seen = int(cancelled(b"", metadata=user, timeout=PATIENCE))
            if seen >= count:
                return True
            time.sleep(0.01)
        return False

    answer, call = echo.with_call(b"hello", metadata=(*user, ("trace-bin", BINARY)), timeout=PATIENCE)
    say("unary", answer == b"hello" and call.code() is grpc.StatusCode.OK, f"{answer!r}, {call.code().name}, initial metadata x-side: {dict(call.initial_metadata()).get('x-side')}")
    say("-bin metadata", dict(call.trailing_metadata()).get("trace-bin") == BINARY, "all 256 byte values there and back")

    parts = [str(n).encode() * 100 for n in range(500)]
    answer = upload(iter(parts), metadata=user, timeout=PATIENCE)
    say("client streaming", answer == f"500 {hashlib.sha256(b''.join(parts)).hexdigest()}".encode(), answer.decode())

    answers = [int(number) for number in numbers(b"500", metadata=user, timeout=PATIENCE)]
    say("server streaming", answers == list(range(500)), f"{len(answers)} messages in order")

    # Each message is sent only after the answer to the one before: nothing may be held back.
    turn, said = threading.Semaphore(1), []

    def one_by_one():
        for number in range(50):
            if not turn.acquire(timeout=PATIENCE):
                return
            yield str(number).encode()

    for answer in chat(one_by_one(), metadata=user, timeout=PATIENCE):
        said.append(answer)
        turn.release()
    say("bidirectional streaming", said == [b"you said " + str(n).encode() for n in range(50)], f"{len(said)} turns, each waiting for the answer to the one before")

    answer = echo(LARGE, metadata=user, timeout=PATIENCE)
    say("4 MiB message", answer == LARGE, f"{len(answer)} bytes there and back")

    before, begun = int(cancelled(b"", metadata=user)), time.monotonic()
    try:
        list(wait(b"", metadata=user, timeout=0.5))
        code = "none"
    except grpc.RpcError as error:
        code = error.code().name
    took = time.monotonic() - begun
    say("deadline", code == "DEADLINE_EXCEEDED" and took < 5 and until_cancelled(before + 1), f"{code} after {took * 1000:.0f} ms, and the server saw it end")

    call = wait(b"", metadata=user, timeout=PATIENCE)
    next(call)
    call.cancel()
    say("cancel", until_cancelled(before + 2), f"{call.code().name}, and the server saw it")

    try:
        echo(b"", metadata=(*user, ("x-fail", "5")), timeout=PATIENCE)
        code, details = "none", ""
    except grpc.RpcError as error:
        code, details = error.code().name, error.details()
    say("trailers-only error", code == "NOT_FOUND" and details == "as asked: 100 % \u00fc", f"{code}, details {details!r}")


def ended(channel, users, metadata=()):
    echo, ends = channel.unary_unary("/edge.Edge/Echo"), collections.Counter()
    for user in users:
        try:
            echo(b"x", metadata=(("x-user-id", user), *metadata), timeout=PATIENCE)
            ends["OK"] += 1
        except grpc.RpcError as error:
            ends[error.code().name] += 1
    return ends


def load(target, seconds):
    """Four callers at about 50 calls per second each."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    deadline, all_ends, lock = time.monotonic() + seconds, collections.Counter(), threading.Lock()

    def caller(first):
        channel, number = channel_to(target), first
        while time.monotonic() < deadline and not over.wait(0.02):
            ends = ended(channel, [f"user-{number % 400}"])
            number += 4
            with lock:
                all_ends.update(ends)

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(all_ends))


def main():
    verb, *arguments = sys.argv[1:]
    match verb:
        case "serve":
            serve(arguments[0])
        case "calls":
            calls(*arguments)
        case "fail":
            print(json.dumps(ended(channel_to(arguments[0]), [f"user-{n}" for n in range(int(arguments[2]))], (("x-fail", arguments[1]),))))
        case "break":
            channel_to(arguments[0]).unary_unary("/edge.Edge/Break")(arguments[1].encode(), timeout=PATIENCE)
        case "load":
            load(arguments[0], float(arguments[1]))


if __name__ == "__main__":
    main()

"""Makes pods over a runtime's CRI: SOCKET IMAGE, then a line of JSON for each wish on the input.

{"pod": NAME, "annotations": {}, "containers": {NAME: [COMMAND]}} prints the ids of the pod and of its
containers; {"exec": CONTAINER, "command": []} prints the status; {"remove": POD} removes one.
"""

import json
import sys

import grpc


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def read(message, wanted, default=None):
    at = 0

    def number():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 == 0:
            value = number()
        else:
            length = number()
            value = message[at : at + length]
            at += length
        if tag >> 3 == wanted:
            return value
    return default


channel = grpc.insecure_channel(f"unix://{sys.argv[1]}")
image = sys.argv[2]


def ask(method, message):
    call = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
    return call(message, timeout=60)


for line in sys.stdin:
    wish = json.loads(line)
    if "pod" in wish:
        name = wish["pod"]
        metadata = field(1, name) + field(2, name + "-uid") + field(3, "default")
        config = field(1, metadata)
        for key, text in wish["annotations"].items():
            config += field(7, field(1, key) + field(2, text))
        config += field(8, b"")
        pod = read(ask("RunPodSandbox", field(1, config)), 1).decode()
        ids = {}
        for container, command in wish["containers"].items():
            own = field(1, field(1, container)) + field(2, field(1, image))
            own += b"".join(field(3, word) for word in command) + field(15, b"")
            wanted = field(1, pod) + field(2, own) + field(3, config)
            ids[container] = read(ask("CreateContainer", wanted), 1).decode()
            ask("StartContainer", field(1, ids[container]))
        print(json.dumps({"pod": pod, "containers": ids}), flush=True)
    elif "exec" in wish:
        words = b"".join(field(2, word) for word in wish["command"])
        answer = ask("ExecSync", field(1, wish["exec"]) + words + field(3, 10))
        print(json.dumps(read(answer, 3, 0)), flush=True)
    else:
        ask("StopPodSandbox", field(1, wish["remove"]))
        ask("RemovePodSandbox", field(1, wish["remove"]))
        print("null", flush=True)

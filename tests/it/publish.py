"""Publishes events as a producer in another language does: with its own NATS
client and a protobuf encoding written by hand."""

import asyncio
import json
import sys
import uuid

import nats


def varint(n):
    n &= (1 << 64) - 1
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


async def main(url):
    client = await nats.connect(url)
    jetstream = client.jetstream()
    # The daemon makes the stream; until then nobody takes what is published.
    while True:
        try:
            await jetstream.stream_info("ANALYTICS")
            break
        except nats.js.errors.NotFoundError:
            await asyncio.sleep(0.05)

    search_id = str(uuid.uuid4())
    context = field(1, "python-single") + field(3, "ünï")
    search = field(1, context) + field(22, field(1, "messages") + field(2, "12"))
    await jetstream.publish(
        "fechatter.analytics.search.performed", search, headers={"Nats-Msg-Id": search_id}
    )
    message = field(1, field(1, "python-batch")) + field(16, field(2, "text") + field(3, -5))
    await jetstream.publish("fechatter.analytics.batch", field(1, message))
    await client.close()
    print(json.dumps({"search": search_id}))


asyncio.run(main(sys.argv[1]))

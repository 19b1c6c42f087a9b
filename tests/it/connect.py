"""What clickhouse-connect does with its default settings, against the URL's server."""

import sys
from datetime import datetime
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

url, database = urlsplit(sys.argv[1]), sys.argv[2]


def connect(**options):
    return clickhouse_connect.get_client(
        host=url.hostname, port=url.port, database=database, **options
    )


client = connect()
client.command("CREATE TABLE py (id UInt32, name LowCardinality(String), at DateTime) ENGINE = MergeTree ORDER BY id")

# Inserts in every compression that it knows; True takes the best.
rows = [[n, f"name {n % 3}", datetime(2026, 1, 1)] for n in range(1000)]
compressions = [True, "lz4", "zstd", "gzip", False]
for compression in compressions:
    packed = connect(compress=compression)
    summary = packed.insert("py", rows, column_names=["id", "name", "at"])
    assert summary.written_rows == 1000, (compression, summary.summary)
    assert len(packed.query("SELECT * FROM py").result_rows) % 1000 == 0, compression
assert client.query("SELECT count() FROM py").result_rows == [(1000 * len(compressions),)]
client.raw_insert("py", ["id", "name"], b"5000,raw\n", fmt="CSV")

# Parameters, in the URL and (too long for it) in a form.
parameters = {"n": 5, "s": "it's\t\\ \n", "l": ["a", "b'"]}
result = client.query("SELECT {n:UInt32}, {s:String}, {l:Array(String)}", parameters=parameters)
assert result.result_rows == [(5, "it's\t\\ \n", ["a", "b'"])], result.result_rows
long = client.query("SELECT length({l:Array(String)})", parameters={"l": ["x" * 100] * 2000})
assert long.result_rows == [(2000,)]

assert client.query("SELECT * FROM py LIMIT 0").column_names == ("id", "name", "at")
assert client.query("SELECT getSetting('max_threads')", settings={"max_threads": 3}).result_rows == [(3,)]
external = ExternalData(file_name="ext", data=b"1\n2\n", fmt="CSV", structure=["x Int32"])
assert client.query("SELECT sum(x) FROM ext", external_data=external).result_rows == [(3,)]
with client.query_rows_stream("SELECT number FROM numbers(1000000)") as stream:
    assert sum(row[0] for row in stream) == 499999500000

try:
    client.query("SELECT * FROM missing")
    raise AssertionError("no error")
except DatabaseError as error:
    assert (error.code, error.name) == (60, "UNKNOWN_TABLE"), error

# An error after the first rows are out.
try:
    with client.query_rows_stream("SELECT throwIf(number = 3000000), number FROM numbers(4000000)") as stream:
        for _ in stream:
            pass
    raise AssertionError("no error")
except StreamFailureError as error:
    assert "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO" in str(error), error

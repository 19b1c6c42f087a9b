-- What could not be stored as an event, with the reason and the bytes.
--
-- ORDER BY time: one looks at the latest letters first, or at those of a day.
CREATE TABLE IF NOT EXISTS dead_letters
(
    stream LowCardinality(String) COMMENT 'The JetStream stream''s name and creation time',
    stream_seq UInt64 COMMENT 'Sequence of the message in its stream' CODEC(Delta(8), ZSTD(1)),
    batch_index UInt32 COMMENT 'Place inside a batch message, otherwise 0' CODEC(ZSTD(1)),
    subject LowCardinality(String) COMMENT 'NATS subject that the message came on',
    received_at DateTime64(3, 'UTC') COMMENT 'When JetStream stored the message' CODEC(Delta(8), ZSTD(1)),
    reason LowCardinality(String) COMMENT 'undecodable: not the protobuf message it should be; missing_context; missing_client_id',
    error String COMMENT 'What is wrong, for a person' CODEC(ZSTD(1)),
    headers String COMMENT 'The message''s headers as a JSON object of arrays' CODEC(ZSTD(1)),
    payload String COMMENT 'The message''s payload, or the bytes of the one event of a batch message' CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(received_at)
ORDER BY (received_at, stream_seq, batch_index)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Messages that could not be stored as events, each with its reason and its bytes';

-- Errors that clients met, a row each: narrow, so that a dashboard of errors does
-- not read the wide table.
CREATE TABLE IF NOT EXISTS error_tracking
(
    timestamp DateTime64(3, 'UTC') COMMENT 'server_ts of the event',
    date Date COMMENT 'UTC date',
    error_type LowCardinality(String) COMMENT 'Kind of error',
    error_code LowCardinality(String) COMMENT 'Code',
    error_message String COMMENT 'Message' CODEC(ZSTD(1)),
    error_context String COMMENT 'Where in the application' CODEC(ZSTD(1)),
    user_id String COMMENT 'User who met it; empty before login' CODEC(ZSTD(1)),
    client_id String COMMENT 'Client that met it' CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY date
ORDER BY (error_type, timestamp)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Every error_occurred event, one row each';

CREATE MATERIALIZED VIEW IF NOT EXISTS error_tracking_mv TO error_tracking AS
SELECT
    server_ts AS timestamp,
    toDate(server_ts) AS date,
    error_type,
    error_code,
    error_message,
    error_context,
    user_id,
    client_id
FROM analytics_events
WHERE event_type = 'error_occurred';

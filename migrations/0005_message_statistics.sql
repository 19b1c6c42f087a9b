-- Messages by type and day.
CREATE TABLE IF NOT EXISTS message_statistics
(
    date Date COMMENT 'UTC date',
    message_type LowCardinality(String) COMMENT 'text, image, …',
    message_count UInt64 COMMENT 'Messages; sum() it, rows of one type merge later',
    total_size Int64 COMMENT 'Bytes of the messages; sum() it',
    total_files Int64 COMMENT 'Files attached to the messages; sum() it'
)
ENGINE = SummingMergeTree((message_count, total_size, total_files))
PARTITION BY date
ORDER BY (date, message_type)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Messages sent, their bytes and files, by type and day. sum() the numbers';

CREATE MATERIALIZED VIEW IF NOT EXISTS message_statistics_mv TO message_statistics AS
SELECT
    toDate(server_ts) AS date,
    message_type,
    count() AS message_count,
    sum(message_size) AS total_size,
    sum(message_total_files) AS total_files
FROM analytics_events
WHERE event_type = 'message_sent'
GROUP BY date, message_type;

-- How much of what happened on which day.
CREATE TABLE IF NOT EXISTS event_counts_by_type
(
    date Date COMMENT 'UTC date',
    event_type LowCardinality(String) COMMENT 'As in analytics_events',
    count UInt64 COMMENT 'Events of the type on that day; sum() it, rows of one type merge later'
)
ENGINE = SummingMergeTree(count)
PARTITION BY date
ORDER BY (date, event_type)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Events of each type by day. sum(count)';

CREATE MATERIALIZED VIEW IF NOT EXISTS event_counts_by_type_mv TO event_counts_by_type AS
SELECT
    toDate(server_ts) AS date,
    event_type,
    count() AS count
FROM analytics_events
GROUP BY date, event_type;

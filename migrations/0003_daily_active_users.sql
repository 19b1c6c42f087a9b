-- Who was active on which day.
--
-- The targets of all views are partitioned by day, so that a day can be rebuilt
-- beside the others and swapped in at once, and each has its deduplication
-- window, without which a repeated insert would be counted twice in it.
-- Events before login have no user and are left out.
CREATE TABLE IF NOT EXISTS daily_active_users
(
    date Date COMMENT 'UTC date',
    user_id String COMMENT 'User who was active',
    events_count UInt64 COMMENT 'Events of the user on that day; sum() it, rows of one user merge later'
)
ENGINE = SummingMergeTree(events_count)
PARTITION BY date
ORDER BY (date, user_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Users active on a day. count(DISTINCT user_id) for users, sum(events_count) for events';

CREATE MATERIALIZED VIEW IF NOT EXISTS daily_active_users_mv TO daily_active_users AS
SELECT
    toDate(server_ts) AS date,
    user_id,
    count() AS events_count
FROM analytics_events
WHERE user_id != ''
GROUP BY date, user_id;

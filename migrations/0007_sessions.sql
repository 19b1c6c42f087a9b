-- Sessions: when each began and ended, and how much happened in it.
--
-- A session's events arrive in many inserts. The target keeps what can be merged
-- (earliest, latest, sum), and the views finish it: they are exact at any time,
-- merged or not. A session over midnight has a row on each day, since the target
-- is partitioned by day. user_id of a session is the greatest one, so that a
-- session that began before login belongs to its user.
-- Events without a session_id belong to no session.
CREATE TABLE IF NOT EXISTS session_totals
(
    date Date COMMENT 'UTC date',
    client_id String COMMENT 'Client',
    session_id String COMMENT 'Session of the client',
    users SimpleAggregateFunction(groupUniqArrayArray, Array(String)) COMMENT 'Users who were logged in',
    session_start SimpleAggregateFunction(min, DateTime64(3, 'UTC')) COMMENT 'First event',
    session_end SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'Last event',
    total_events SimpleAggregateFunction(sum, UInt64) COMMENT 'Events'
)
ENGINE = AggregatingMergeTree
PARTITION BY date
ORDER BY (date, client_id, session_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What the views sessions and daily_sessions are made from; query those';

CREATE MATERIALIZED VIEW IF NOT EXISTS session_totals_mv TO session_totals AS
SELECT
    toDate(server_ts) AS date,
    client_id,
    session_id,
    groupUniqArrayIf(user_id, user_id != '') AS users,
    min(server_ts) AS session_start,
    max(server_ts) AS session_end,
    count() AS total_events
FROM analytics_events
WHERE session_id != ''
GROUP BY date, client_id, session_id;

CREATE VIEW IF NOT EXISTS sessions
(
    date Date COMMENT 'UTC date; a session over midnight has a row on each day',
    client_id String COMMENT 'Client',
    session_id String COMMENT 'Session of the client',
    user_id String COMMENT 'User, the last one by name where several were logged in; empty where nobody was',
    session_start DateTime64(3, 'UTC') COMMENT 'First event of the session on that day',
    session_end DateTime64(3, 'UTC') COMMENT 'Last event of the session on that day',
    session_length Int64 COMMENT 'Whole seconds from the first to the last event',
    total_events UInt64 COMMENT 'Events of the session on that day'
)
AS
SELECT
    date,
    client_id,
    session_id,
    arrayMax(arrayPushBack(groupUniqArrayArray(totals.users), '')) AS user_id,
    min(totals.session_start) AS session_start,
    max(totals.session_end) AS session_end,
    intDiv(toUnixTimestamp64Milli(max(totals.session_end)) - toUnixTimestamp64Milli(min(totals.session_start)), 1000) AS session_length,
    sum(totals.total_events) AS total_events
FROM session_totals AS totals
GROUP BY date, client_id, session_id
COMMENT 'One row a session and day, exact at any time';

CREATE VIEW IF NOT EXISTS daily_sessions
(
    date Date COMMENT 'UTC date',
    client_id String COMMENT 'Client',
    total_session_length Int64 COMMENT 'Seconds in all sessions of the client on that day',
    total_session_events UInt64 COMMENT 'Events in all sessions of the client on that day',
    unique_users UInt64 COMMENT 'Different users who were logged in on the client on that day'
)
AS
SELECT
    date,
    client_id,
    sum(length_of_session) AS total_session_length,
    sum(events_of_session) AS total_session_events,
    uniqExactArray(users_of_session) AS unique_users
FROM
(
    SELECT
        date,
        client_id,
        session_id,
        groupUniqArrayArray(users) AS users_of_session,
        intDiv(toUnixTimestamp64Milli(max(session_end)) - toUnixTimestamp64Milli(min(session_start)), 1000) AS length_of_session,
        sum(total_events) AS events_of_session
    FROM session_totals
    GROUP BY date, client_id, session_id
)
GROUP BY date, client_id
COMMENT 'One row a client and day, exact at any time';

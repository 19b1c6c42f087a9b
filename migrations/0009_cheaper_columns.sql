-- Cheaper forms of what 0001 and 0007 made, as `cargo bench --bench schema_cost` measured
-- them (ARCHITECTURE.md, "What the schema costs"). New parts have them at once, old parts
-- when they are merged or rewritten.
--
-- client_ts: neighbours differ by as much as clocks and networks do, so that differences
-- are no smaller than the times without the bits that all of them share.
ALTER TABLE analytics_events
    MODIFY COLUMN client_ts CODEC(T64, LZ4);

-- user_agent repeats: half the bytes, and merges and GROUP BY work on numbers.
-- alter_sync = 0: old parts are rewritten in the background, and answer as before meanwhile.
ALTER TABLE analytics_events
    MODIFY COLUMN user_agent LowCardinality(String)
    SETTINGS alter_sync = 0;

-- Ids of clients and sessions are most of what the views keep.
ALTER TABLE session_totals
    MODIFY COLUMN client_id CODEC(ZSTD(1)),
    MODIFY COLUMN session_id CODEC(ZSTD(1)),
    MODIFY COLUMN users CODEC(ZSTD(1)),
    MODIFY COLUMN session_start CODEC(Delta(8), ZSTD(1)),
    MODIFY COLUMN session_end CODEC(Delta(8), ZSTD(1)),
    MODIFY COLUMN total_events CODEC(ZSTD(1));

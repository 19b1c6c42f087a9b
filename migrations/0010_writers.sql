-- Who inserts into a table. A day of a view may only be built again while nobody else
-- inserts into the view's source, so a lane says here that it writes, again and again, and
-- does not write where another one does. Lanes of different NATS servers have nothing in
-- common but these tables.
CREATE TABLE IF NOT EXISTS writers
(
    table_name LowCardinality(String) COMMENT 'The table that is inserted into',
    stream String COMMENT 'The JetStream stream''s name and creation time',
    consumer String COMMENT 'The durable consumer''s name',
    owner String COMMENT 'The instance of the daemon that is active',
    at DateTime64(3, 'UTC') COMMENT 'When it said so',
    active Bool COMMENT 'Whether it goes on; false once it has stopped in order'
)
ENGINE = ReplacingMergeTree(at)
ORDER BY (table_name, stream, consumer)
TTL toDateTime(at) + INTERVAL 1 DAY
COMMENT 'Which stream each table is filled from';

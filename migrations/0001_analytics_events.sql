-- One row an event.
--
-- ORDER BY: nearly every question names an event type and a span of time. Rows of
-- one type also fill the same columns, so sorting by type first leaves the others
-- as long runs of nothing, which compress away.
-- PARTITION BY month: few partitions, so that one insert makes one or two parts
-- (the daemon keeps server_ts within 30 days of receipt).
-- Values that repeat are LowCardinality: smaller, and GROUP BY works on numbers.
-- Nothing is Nullable: "not sent" and the type's default are the same in protobuf 3.
-- No DEFAULT that differs from insert to insert: a repeated insert must be
-- recognised as the same one.
-- non_replicated_deduplication_window: how many past inserts (parts) a repeat is
-- recognised among. Far more than the daemon has in flight.
-- Rows are dropped retention_days after server_ts; the daemon sets that TTL.
CREATE TABLE IF NOT EXISTS analytics_events
(
    event_id UUID COMMENT 'The producer''s Nats-Msg-Id where that is a UUID, otherwise derived from stream, sequence and batch index',
    event_type LowCardinality(String) COMMENT 'What happened: message_sent, user_login, …; for a type newer than this daemon, its subject with _ for dots',

    stream LowCardinality(String) COMMENT 'The JetStream stream''s name and creation time; with stream_seq and batch_index the row''s origin',
    stream_seq UInt64 COMMENT 'Sequence of the message in its stream' CODEC(Delta(8), ZSTD(1)),
    batch_index UInt32 COMMENT 'Place inside a batch message, otherwise 0' CODEC(ZSTD(1)),
    subject LowCardinality(String) COMMENT 'NATS subject that the message came on',
    received_at DateTime64(3, 'UTC') COMMENT 'When JetStream stored the message' CODEC(Delta(8), ZSTD(1)),
    server_ts DateTime64(3, 'UTC') COMMENT 'When it happened by the producing server''s clock; received_at where that clock was not set or not believable. All dates derive from it' CODEC(Delta(8), ZSTD(1)),
    client_ts DateTime64(3, 'UTC') COMMENT 'When it happened by the client''s clock, which may be wrong; received_at where it was not between 1970 and 2100' CODEC(Delta(8), ZSTD(1)),
    date Date ALIAS toDate(server_ts) COMMENT 'UTC date of server_ts',

    client_id String COMMENT 'Installation or browser; never empty' CODEC(ZSTD(1)),
    session_id String COMMENT 'One sitting of a client; empty where the client has none' CODEC(ZSTD(1)),
    user_id String COMMENT 'Empty before login' CODEC(ZSTD(1)),
    app_version LowCardinality(String) COMMENT 'Version of the client',
    user_agent String COMMENT 'As the client sent it' CODEC(ZSTD(1)),
    ip String COMMENT 'Address of the client as the producer saw it' CODEC(ZSTD(1)),
    system_os LowCardinality(String) COMMENT 'Operating system of the client',
    system_arch LowCardinality(String) COMMENT 'Processor architecture of the client',
    system_locale LowCardinality(String) COMMENT 'Language and region, such as en-US',
    system_timezone LowCardinality(String) COMMENT 'IANA name, such as Asia/Tokyo',
    system_browser LowCardinality(String) COMMENT 'Name of the browser',
    system_browser_version LowCardinality(String) COMMENT 'Version of the browser',
    geo_country LowCardinality(String) COMMENT 'Country, by the producer''s look-up of ip',
    geo_region LowCardinality(String) COMMENT 'Region within the country',
    geo_city LowCardinality(String) COMMENT 'City',

    exit_code LowCardinality(String) COMMENT 'app_exit: EXIT_CODE_SUCCESS, _ERROR, _CRASH or _UNSPECIFIED',

    login_email String COMMENT 'user_login: e-mail address' CODEC(ZSTD(1)),
    login_method LowCardinality(String) COMMENT 'user_login: password, oauth, …',
    logout_email String COMMENT 'user_logout: e-mail address' CODEC(ZSTD(1)),
    register_email String COMMENT 'user_register: e-mail address' CODEC(ZSTD(1)),
    register_workspace_id String COMMENT 'user_register: workspace joined' CODEC(ZSTD(1)),
    register_method LowCardinality(String) COMMENT 'user_register: how',

    chat_created_workspace_id String COMMENT 'chat_created: workspace of the chat' CODEC(ZSTD(1)),
    chat_created_type LowCardinality(String) COMMENT 'chat_created: single, group, channel, …',
    chat_created_members_count Int32 COMMENT 'chat_created: members at the start' CODEC(ZSTD(1)),

    message_chat_id String COMMENT 'message_sent: chat it was sent to' CODEC(ZSTD(1)),
    message_type LowCardinality(String) COMMENT 'message_sent: text, image, …',
    message_size Int32 COMMENT 'message_sent: bytes' CODEC(ZSTD(1)),
    message_total_files Int32 COMMENT 'message_sent: attached files' CODEC(ZSTD(1)),
    message_has_mentions Bool COMMENT 'message_sent: mentions somebody',
    message_has_links Bool COMMENT 'message_sent: contains a link',

    chat_joined_id String COMMENT 'chat_joined: chat' CODEC(ZSTD(1)),
    chat_joined_method LowCardinality(String) COMMENT 'chat_joined: invited, link, …',
    chat_left_id String COMMENT 'chat_left: chat' CODEC(ZSTD(1)),
    chat_left_reason LowCardinality(String) COMMENT 'chat_left: voluntary, removed, …',

    navigation_from String COMMENT 'navigation: path left' CODEC(ZSTD(1)),
    navigation_to String COMMENT 'navigation: path entered' CODEC(ZSTD(1)),
    navigation_duration_ms Int32 COMMENT 'navigation: milliseconds on the path left' CODEC(ZSTD(1)),

    file_uploaded_type LowCardinality(String) COMMENT 'file_uploaded: media type',
    file_uploaded_size Int64 COMMENT 'file_uploaded: bytes' CODEC(ZSTD(1)),
    file_uploaded_method LowCardinality(String) COMMENT 'file_uploaded: picker, drag_drop, …',
    file_uploaded_duration_ms Int32 COMMENT 'file_uploaded: milliseconds' CODEC(ZSTD(1)),
    file_downloaded_type LowCardinality(String) COMMENT 'file_downloaded: media type',
    file_downloaded_size Int64 COMMENT 'file_downloaded: bytes' CODEC(ZSTD(1)),
    file_downloaded_duration_ms Int32 COMMENT 'file_downloaded: milliseconds' CODEC(ZSTD(1)),

    search_type LowCardinality(String) COMMENT 'search_performed: messages, users, …',
    search_query_length String COMMENT 'search_performed: characters of the query; text, as producers send it' CODEC(ZSTD(1)),
    search_results_count Int32 COMMENT 'search_performed: results' CODEC(ZSTD(1)),
    search_duration_ms Int32 COMMENT 'search_performed: milliseconds' CODEC(ZSTD(1)),
    search_has_filters Bool COMMENT 'search_performed: narrowed by filters',

    notification_type LowCardinality(String) COMMENT 'notification_received: mention, message, …',
    notification_source LowCardinality(String) COMMENT 'notification_received: what sent it',
    notification_was_clicked Bool COMMENT 'notification_received: clicked',

    error_type LowCardinality(String) COMMENT 'error_occurred: kind of error',
    error_code LowCardinality(String) COMMENT 'error_occurred: code',
    error_message String COMMENT 'error_occurred: message' CODEC(ZSTD(1)),
    error_stack_trace String COMMENT 'error_occurred: stack trace' CODEC(ZSTD(1)),
    error_context String COMMENT 'error_occurred: where in the application' CODEC(ZSTD(1)),

    bot_response_bot_id String COMMENT 'bot_response: bot' CODEC(ZSTD(1)),
    bot_response_chat_id String COMMENT 'bot_response: chat' CODEC(ZSTD(1)),
    bot_response_type LowCardinality(String) COMMENT 'bot_response: kind of answer',
    bot_response_time_ms UInt64 COMMENT 'bot_response: milliseconds to the answer' CODEC(ZSTD(1)),
    bot_response_tokens_used UInt32 COMMENT 'bot_response: tokens of the language model' CODEC(ZSTD(1)),
    bot_response_success Bool COMMENT 'bot_response: answered without an error',
    bot_response_error_message String COMMENT 'bot_response: why not' CODEC(ZSTD(1)),

    payload String COMMENT 'The event''s protobuf bytes where event_type is newer than this daemon, otherwise empty' CODEC(ZSTD(1)),

    INDEX stream_seq stream_seq TYPE minmax GRANULARITY 1,
    INDEX user_id user_id TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(server_ts)
ORDER BY (event_type, server_ts)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Every analytics event, once. One row an event; columns after geo_city belong to the event type that their comment names';

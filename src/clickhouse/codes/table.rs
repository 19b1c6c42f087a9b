//! The codes, each with its reason.

use super::{Class, Code, VIOLATED_CONSTRAINT};

/// Every code that an insert is known to meet.
pub const CODES: &[Code] = &[
    // A value does not fit: the type of a column was changed, or a constraint added.
    refused(6, "CANNOT_PARSE_TEXT", "not a number"),
    refused(25, "CANNOT_PARSE_ESCAPE_SEQUENCE", "not an array's text"),
    refused(26, "CANNOT_PARSE_QUOTED_STRING", "not an array's text"),
    refused(
        27,
        "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
        "not a tuple's text",
    ),
    refused(
        32,
        "ATTEMPT_TO_READ_AFTER_EOF",
        "empty where a number should be",
    ),
    refused(38, "CANNOT_PARSE_DATE", "not a date"),
    refused(41, "CANNOT_PARSE_DATETIME", "not a time"),
    refused(69, "ARGUMENT_OUT_OF_BOUND", "too many digits for a decimal"),
    refused(72, "CANNOT_PARSE_NUMBER", "not a number"),
    // Also the answer to a column that the table lacks, but without the words that make it
    // a refusal.
    refused(117, "INCORRECT_DATA", "not JSON"),
    refused(130, "CANNOT_READ_ARRAY_FROM_TEXT", "not an array"),
    refused(131, "TOO_LARGE_STRING_SIZE", "longer than a FixedString"),
    refused(
        321,
        "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE",
        "a time outside the type",
    ),
    refused(
        349,
        "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN",
        "NULL once converted",
    ),
    refused(376, "CANNOT_PARSE_UUID", "not a UUID"),
    refused(407, "DECIMAL_OVERFLOW", "larger than a decimal"),
    refused(
        441,
        "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING",
        "outside the domain",
    ),
    refused(467, "CANNOT_PARSE_BOOL", "not a boolean"),
    // Checked for the whole block before any of it is stored.
    refused(
        VIOLATED_CONSTRAINT,
        "VIOLATED_CONSTRAINT",
        "violates a CHECK of the table",
    ),
    refused(563, "CANNOT_READ_MAP_FROM_TEXT", "not a map"),
    refused(
        632,
        "UNEXPECTED_DATA_AFTER_PARSED_VALUE",
        "more than the type can hold",
    ),
    refused(675, "CANNOT_PARSE_IPV4", "not an address"),
    refused(676, "CANNOT_PARSE_IPV6", "not an address"),
    refused(
        691,
        "UNKNOWN_ELEMENT_OF_ENUM",
        "not one of an Enum's values",
    ),
    // The schema is not what the block was made for: true for every row.
    unavailable(
        8,
        "THERE_IS_NO_COLUMN",
        "schema: migrate, or undo the change",
    ),
    unavailable(
        10,
        "NOT_FOUND_COLUMN_IN_BLOCK",
        "schema: migrate, or undo the change",
    ),
    unavailable(
        16,
        "NO_SUCH_COLUMN_IN_TABLE",
        "schema: migrate, or undo the change",
    ),
    unavailable(
        20,
        "NUMBER_OF_COLUMNS_DOESNT_MATCH",
        "schema: a view and its target differ",
    ),
    unavailable(
        43,
        "ILLEGAL_TYPE_OF_ARGUMENT",
        "schema: an expression of a view or column",
    ),
    unavailable(
        44,
        "ILLEGAL_COLUMN",
        "schema: an expression of a view or column",
    ),
    unavailable(
        47,
        "UNKNOWN_IDENTIFIER",
        "schema: a view selects what is gone",
    ),
    unavailable(
        48,
        "NOT_IMPLEMENTED",
        "schema: what has the table's name does not accept inserts",
    ),
    unavailable(50, "UNKNOWN_TYPE", "the server is too old for the schema"),
    unavailable(
        53,
        "TYPE_MISMATCH",
        "schema: types that do not convert at all",
    ),
    unavailable(
        60,
        "UNKNOWN_TABLE",
        "the table, or a view's target, is gone",
    ),
    unavailable(
        70,
        "CANNOT_CONVERT_TYPE",
        "schema: types that do not convert at all",
    ),
    unavailable(81, "UNKNOWN_DATABASE", "the database is gone"),
    unavailable(218, "TABLE_IS_DROPPED", "the table is being dropped"),
    // By an expression of a column, a key or a view: the schema's own rules.
    unavailable(
        153,
        "ILLEGAL_DIVISION",
        "schema: an expression divides by zero",
    ),
    unavailable(
        395,
        "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO",
        "schema: an expression throws",
    ),
    // The user, or the settings that it may use.
    unavailable(115, "UNKNOWN_SETTING", "the server is too old"),
    unavailable(164, "READONLY", "the user may only read"),
    unavailable(192, "UNKNOWN_USER", "the user"),
    unavailable(193, "WRONG_PASSWORD", "the password"),
    unavailable(194, "REQUIRED_PASSWORD", "the password"),
    unavailable(
        195,
        "IP_ADDRESS_NOT_ALLOWED",
        "the user may not connect from here",
    ),
    unavailable(
        452,
        "SETTING_CONSTRAINT_VIOLATION",
        "the user's profile forbids a setting",
    ),
    unavailable(497, "ACCESS_DENIED", "the user lacks a grant"),
    unavailable(516, "AUTHENTICATION_FAILED", "the user, or its password"),
    unavailable(720, "USER_EXPIRED", "the user has expired"),
    // Too much at a time: pausing helps.
    unavailable(158, "TOO_MANY_ROWS", "a limit of the user's profile"),
    unavailable(201, "QUOTA_EXCEEDED", "until the quota's interval is over"),
    unavailable(
        202,
        "TOO_MANY_SIMULTANEOUS_QUERIES",
        "until others have finished",
    ),
    unavailable(
        216,
        "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
        "an earlier attempt still runs",
    ),
    unavailable(
        241,
        "MEMORY_LIMIT_EXCEEDED",
        "until others have finished, or the limit is raised",
    ),
    unavailable(252, "TOO_MANY_PARTS", "until merges have caught up"),
    unavailable(290, "LIMIT_EXCEEDED", "a limit of the server"),
    unavailable(307, "TOO_MANY_BYTES", "a limit of the user's profile"),
    unavailable(
        396,
        "TOO_MANY_ROWS_OR_BYTES",
        "a limit of the user's profile",
    ),
    unavailable(439, "CANNOT_SCHEDULE_TASK", "no thread is free"),
    unavailable(
        700,
        "USER_SESSION_LIMIT_EXCEEDED",
        "until others have finished",
    ),
    unavailable(745, "SERVER_OVERLOADED", "until others have finished"),
    // The server's disks, and its replicas.
    unavailable(76, "CANNOT_OPEN_FILE", "the server's disk"),
    unavailable(173, "CANNOT_ALLOCATE_MEMORY", "the server's memory"),
    unavailable(225, "NO_ZOOKEEPER", "Keeper is unavailable"),
    unavailable(242, "TABLE_IS_READ_ONLY", "the replica has lost Keeper"),
    unavailable(243, "NOT_ENOUGH_SPACE", "the server's disk is full"),
    unavailable(254, "NO_ACTIVE_REPLICAS", "replicas are unavailable"),
    unavailable(285, "TOO_FEW_LIVE_REPLICAS", "replicas are unavailable"),
    unavailable(
        286,
        "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE",
        "replicas are behind",
    ),
    unavailable(289, "REPLICA_IS_NOT_IN_QUORUM", "the replica is behind"),
    unavailable(499, "S3_ERROR", "the server's object storage"),
    unavailable(733, "TABLE_IS_BEING_RESTARTED", "for a moment"),
    unavailable(999, "KEEPER_EXCEPTION", "Keeper is unavailable"),
    // ClickHouse stopped somewhere in the middle.
    unknown(
        3,
        "UNEXPECTED_END_OF_FILE",
        "the body was cut short on its way",
    ),
    unknown(
        33,
        "CANNOT_READ_ALL_DATA",
        "the body was cut short on its way",
    ),
    unknown(
        49,
        "LOGICAL_ERROR",
        "a fault of ClickHouse, found at any point",
    ),
    unknown(95, "CANNOT_READ_FROM_SOCKET", "a connection broke"),
    unknown(96, "CANNOT_WRITE_TO_SOCKET", "a connection broke"),
    unknown(
        159,
        "TIMEOUT_EXCEEDED",
        "the user's max_execution_time, at any point",
    ),
    unknown(209, "SOCKET_TIMEOUT", "a connection stalled"),
    unknown(210, "NETWORK_ERROR", "a connection broke"),
    unknown(236, "ABORTED", "the server is stopping"),
    unknown(
        319,
        "UNKNOWN_STATUS_OF_INSERT",
        "Keeper went away at the commit",
    ),
    unknown(394, "QUERY_WAS_CANCELLED", "killed, at any point"),
    unknown(
        425,
        "SYSTEM_ERROR",
        "the server's operating system, at any point",
    ),
    unknown(677, "THREAD_WAS_CANCELED", "killed, at any point"),
    unknown(
        735,
        "QUERY_WAS_CANCELLED_BY_CLIENT",
        "the connection was closed",
    ),
    unknown(
        1000,
        "POCO_EXCEPTION",
        "an error of ClickHouse's network library",
    ),
    unknown(
        1001,
        "STD_EXCEPTION",
        "an error that ClickHouse has no code for",
    ),
    unknown(
        1002,
        "UNKNOWN_EXCEPTION",
        "an error that ClickHouse has no code for",
    ),
];

const fn refused(code: u16, name: &'static str, why: &'static str) -> Code {
    let class = Class::Refused;
    Code {
        code,
        name,
        class,
        why,
    }
}

const fn unavailable(code: u16, name: &'static str, why: &'static str) -> Code {
    let class = Class::Unavailable;
    Code {
        code,
        name,
        class,
        why,
    }
}

const fn unknown(code: u16, name: &'static str, why: &'static str) -> Code {
    let class = Class::Unknown;
    Code {
        code,
        name,
        class,
        why,
    }
}

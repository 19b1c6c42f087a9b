//! An event as ClickHouse stores it: a row of `analytics_events`.

use std::borrow::Cow;

use uuid::Uuid;

use crate::clickhouse::native::{self, LowCardinality, Millis, Plain};
use crate::event::Source;
use crate::pb::analytics_event::EventType;
use crate::pb::{EventContext, GeoLocation, SystemInfo};

/// A decoded event with what the stream knows about the message that carried it.
#[derive(Debug)]
pub struct Event<'a> {
    pub source: &'a Source,
    pub id: Uuid,
    pub client_ts: Millis,
    pub server_ts: Millis,
    /// The oneof field's name, or a name from the subject for a type that this
    /// build does not know.
    pub event_type: Cow<'static, str>,
    pub context: EventContext,
    /// `None` for a type that this build does not know.
    pub kind: Option<EventType>,
}

impl Event<'_> {
    fn system(&self, field: fn(&SystemInfo) -> &str) -> &str {
        self.context.system.as_ref().map_or("", field)
    }

    fn geo(&self, field: fn(&GeoLocation) -> &str) -> &str {
        self.context.geo.as_ref().map_or("", field)
    }
}

/// Defines the columns of `analytics_events`, each with its type and its value: those
/// of every event, that of events of no known kind, and those of each kind.
macro_rules! columns {
    (
        every |$event:ident| { $($every:ident: $every_type:ty = $every_value:expr,)* }
        unknown |$unknown:ident| { $other:ident: $other_type:ty = $other_value:expr, }
        $($kind:ident |$of_kind:pat_param| { $($name:ident: $type:ty = $value:expr,)* })*
    ) => {
        /// Rows of `analytics_events`.
        #[derive(Default)]
        pub struct Columns {
            rows: usize,
            $($every: $every_type,)*
            $($($name: $type,)*)*
            $other: $other_type,
        }

        impl Columns {
            pub fn push(&mut self, $event: &Event<'_>) {
                let row = self.rows;
                $(self.$every.set(row, $every_value);)*
                match &$event.kind {
                    $(Some(EventType::$kind($of_kind)) => {
                        $(self.$name.set(row, $value);)*
                    })*
                    None => {
                        let $unknown = $event;
                        self.$other.set(row, $other_value);
                    }
                }
                self.rows += 1;
            }

            /// The columns by their names, in an order that is always the same.
            pub fn finish(self) -> native::Columns {
                native::Columns {
                    rows: self.rows,
                    columns: vec![
                        $((stringify!($every), self.$every.into()),)*
                        $($((stringify!($name), self.$name.into()),)*)*
                        (stringify!($other), self.$other.into()),
                    ],
                }
            }
        }
    };
}

columns! {
    every |e| {
        event_id: Plain<Uuid> = &e.id,
        event_type: LowCardinality = &e.event_type,
        stream_seq: Plain<u64> = &e.source.place.0,
        batch_index: Plain<u32> = &e.source.place.1,
        subject: LowCardinality = &e.source.subject,
        received_at: Plain<Millis> = &e.source.received_at,
        server_ts: Plain<Millis> = &e.server_ts,
        client_ts: Plain<Millis> = &e.client_ts,
        client_id: Plain<str> = &e.context.client_id,
        session_id: Plain<str> = &e.context.session_id,
        user_id: Plain<str> = &e.context.user_id,
        app_version: LowCardinality = &e.context.app_version,
        user_agent: LowCardinality = &e.context.user_agent,
        ip: Plain<str> = &e.context.ip,
        system_os: LowCardinality = e.system(|system| &system.os),
        system_arch: LowCardinality = e.system(|system| &system.arch),
        system_locale: LowCardinality = e.system(|system| &system.locale),
        system_timezone: LowCardinality = e.system(|system| &system.timezone),
        system_browser: LowCardinality = e.system(|system| &system.browser),
        system_browser_version: LowCardinality = e.system(|system| &system.browser_version),
        geo_country: LowCardinality = e.geo(|geo| &geo.country),
        geo_region: LowCardinality = e.geo(|geo| &geo.region),
        geo_city: LowCardinality = e.geo(|geo| &geo.city),
    }
    unknown |e| {
        payload: Plain<[u8]> = &e.source.payload,
    }
    AppStart |_| {}
    AppExit |e| {
        exit_code: LowCardinality = e.exit_code().as_str_name(),
    }
    UserLogin |e| {
        login_email: Plain<str> = &e.email,
        login_method: LowCardinality = &e.login_method,
    }
    UserLogout |e| {
        logout_email: Plain<str> = &e.email,
    }
    UserRegister |e| {
        register_email: Plain<str> = &e.email,
        register_workspace_id: Plain<str> = &e.workspace_id,
        register_method: LowCardinality = &e.registration_method,
    }
    ChatCreated |e| {
        chat_created_workspace_id: Plain<str> = &e.workspace_id,
        chat_created_type: LowCardinality = &e.chat_type,
        chat_created_members_count: Plain<i32> = &e.initial_members_count,
    }
    MessageSent |e| {
        message_chat_id: Plain<str> = &e.chat_id,
        message_type: LowCardinality = &e.r#type,
        message_size: Plain<i32> = &e.size,
        message_total_files: Plain<i32> = &e.total_files,
        message_has_mentions: Plain<bool> = &e.has_mentions,
        message_has_links: Plain<bool> = &e.has_links,
    }
    ChatJoined |e| {
        chat_joined_id: Plain<str> = &e.chat_id,
        chat_joined_method: LowCardinality = &e.join_method,
    }
    ChatLeft |e| {
        chat_left_id: Plain<str> = &e.chat_id,
        chat_left_reason: LowCardinality = &e.leave_reason,
    }
    Navigation |e| {
        navigation_from: Plain<str> = &e.from,
        navigation_to: Plain<str> = &e.to,
        navigation_duration_ms: Plain<i32> = &e.duration_ms,
    }
    FileUploaded |e| {
        file_uploaded_type: LowCardinality = &e.file_type,
        file_uploaded_size: Plain<i64> = &e.file_size,
        file_uploaded_method: LowCardinality = &e.upload_method,
        file_uploaded_duration_ms: Plain<i32> = &e.upload_duration_ms,
    }
    FileDownloaded |e| {
        file_downloaded_type: LowCardinality = &e.file_type,
        file_downloaded_size: Plain<i64> = &e.file_size,
        file_downloaded_duration_ms: Plain<i32> = &e.download_duration_ms,
    }
    SearchPerformed |e| {
        search_type: LowCardinality = &e.search_type,
        search_query_length: Plain<str> = &e.query_length,
        search_results_count: Plain<i32> = &e.results_count,
        search_duration_ms: Plain<i32> = &e.search_duration_ms,
        search_has_filters: Plain<bool> = &e.has_filters,
    }
    NotificationReceived |e| {
        notification_type: LowCardinality = &e.notification_type,
        notification_source: LowCardinality = &e.source,
        notification_was_clicked: Plain<bool> = &e.was_clicked,
    }
    ErrorOccurred |e| {
        error_type: LowCardinality = &e.error_type,
        error_code: LowCardinality = &e.error_code,
        error_message: Plain<str> = &e.error_message,
        error_stack_trace: Plain<str> = &e.stack_trace,
        error_context: Plain<str> = &e.context,
    }
    BotResponse |e| {
        bot_response_bot_id: Plain<str> = &e.bot_id,
        bot_response_chat_id: Plain<str> = &e.chat_id,
        bot_response_type: LowCardinality = &e.response_type,
        bot_response_time_ms: Plain<u64> = &e.response_time_ms,
        bot_response_tokens_used: Plain<u32> = &e.tokens_used,
        bot_response_success: Plain<bool> = &e.success,
        bot_response_error_message: Plain<str> = &e.error_message,
    }
}

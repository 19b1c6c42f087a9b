//! One event as ClickHouse stores it: a row of `analytics_events`.

use std::borrow::Cow;

use async_nats::Subject;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clickhouse::native::{Block, BlockBuilder, Millis};
use crate::dead_letter::PayloadIs;
use crate::pb::analytics_event::EventType;
use crate::pb::{EventContext, GeoLocation, SystemInfo};

/// A row's place in the stream: its message's sequence, and its index inside a
/// batch message. In JSON, `[sequence, index]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place(pub u64, pub u32);

/// A decoded event with what the stream knows of the message that carried it.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: Uuid,
    /// Sequence of the message in its stream.
    pub stream_seq: u64,
    /// Place inside a batch message, else 0.
    pub batch_index: u32,
    pub subject: Subject,
    /// When JetStream stored the message.
    pub received_at: Millis,
    pub client_ts: Millis,
    pub server_ts: Millis,
    /// The oneof field's name, or a name from the subject for a type that this
    /// build does not know.
    pub event_type: Cow<'static, str>,
    pub context: EventContext,
    /// `None` for a type that this build does not know.
    pub kind: Option<EventType>,
    /// The event's own bytes, as they were sent.
    pub payload: Bytes,
    /// Whether they were a message, or one of a batch message.
    pub payload_is: PayloadIs,
}

impl Event {
    pub fn place(&self) -> Place {
        Place(self.stream_seq, self.batch_index)
    }

    /// What is stored beside the columns: the bytes of an event whose type this
    /// build does not know.
    fn unknown_payload(&self) -> &[u8] {
        match self.kind {
            Some(_) => &[],
            None => &self.payload,
        }
    }

    fn system(&self, field: fn(&SystemInfo) -> &str) -> &str {
        self.context.system.as_ref().map_or("", field)
    }

    fn geo(&self, field: fn(&GeoLocation) -> &str) -> &str {
        self.context.geo.as_ref().map_or("", field)
    }
}

/// The name by which an event type is stored: its field's name in the contract.
pub fn type_name(kind: &EventType) -> &'static str {
    match kind {
        EventType::AppStart(_) => "app_start",
        EventType::AppExit(_) => "app_exit",
        EventType::UserLogin(_) => "user_login",
        EventType::UserLogout(_) => "user_logout",
        EventType::UserRegister(_) => "user_register",
        EventType::ChatCreated(_) => "chat_created",
        EventType::MessageSent(_) => "message_sent",
        EventType::ChatJoined(_) => "chat_joined",
        EventType::ChatLeft(_) => "chat_left",
        EventType::Navigation(_) => "navigation",
        EventType::FileUploaded(_) => "file_uploaded",
        EventType::FileDownloaded(_) => "file_downloaded",
        EventType::SearchPerformed(_) => "search_performed",
        EventType::NotificationReceived(_) => "notification_received",
        EventType::ErrorOccurred(_) => "error_occurred",
        EventType::BotResponse(_) => "bot_response",
    }
}

/// Roughly what a row adds to its block beside the strings of its event: fixed
/// columns, and one length byte for each empty string.
const ROW_OVERHEAD: usize = 200;

/// The block that inserts `events`, rows of one stream, into `analytics_events`.
///
/// `bytes` is the size of the messages that carried them, for a good first
/// allocation. The same events always give the same bytes.
pub fn block(stream: &str, events: &[&Event], bytes: usize) -> Block {
    let mut block = BlockBuilder::new(events.len(), bytes + events.len() * ROW_OVERHEAD);

    /// A column of every event.
    macro_rules! each {
        ($name:literal, $event:pat => $value:expr) => {
            block.column($name, events.iter().map(|$event| $value));
        };
    }
    /// A column of one kind of event; the other rows get the type's default.
    macro_rules! of {
        ($kind:ident, $name:literal, $event:pat => $value:expr) => {
            block.column(
                $name,
                events.iter().map(|event| match &event.kind {
                    Some(EventType::$kind($event)) => $value,
                    _ => Default::default(),
                }),
            );
        };
    }
    each!("event_id", e => e.id);
    each!("event_type", e => e.event_type.as_ref());
    each!("stream", _ => stream);
    each!("stream_seq", e => e.stream_seq);
    each!("batch_index", e => e.batch_index);
    each!("subject", e => e.subject.as_str());
    each!("received_at", e => e.received_at);
    each!("server_ts", e => e.server_ts);
    each!("client_ts", e => e.client_ts);

    each!("client_id", e => e.context.client_id.as_str());
    each!("session_id", e => e.context.session_id.as_str());
    each!("user_id", e => e.context.user_id.as_str());
    each!("app_version", e => e.context.app_version.as_str());
    each!("user_agent", e => e.context.user_agent.as_str());
    each!("ip", e => e.context.ip.as_str());
    each!("system_os", e => e.system(|system| &system.os));
    each!("system_arch", e => e.system(|system| &system.arch));
    each!("system_locale", e => e.system(|system| &system.locale));
    each!("system_timezone", e => e.system(|system| &system.timezone));
    each!("system_browser", e => e.system(|system| &system.browser));
    each!("system_browser_version", e => e.system(|system| &system.browser_version));
    each!("geo_country", e => e.geo(|geo| &geo.country));
    each!("geo_region", e => e.geo(|geo| &geo.region));
    each!("geo_city", e => e.geo(|geo| &geo.city));

    of!(AppExit, "exit_code", e => e.exit_code().as_str_name());

    of!(UserLogin, "login_email", e => e.email.as_str());
    of!(UserLogin, "login_method", e => e.login_method.as_str());

    of!(UserLogout, "logout_email", e => e.email.as_str());

    of!(UserRegister, "register_email", e => e.email.as_str());
    of!(UserRegister, "register_workspace_id", e => e.workspace_id.as_str());
    of!(UserRegister, "register_method", e => e.registration_method.as_str());

    of!(ChatCreated, "chat_created_workspace_id", e => e.workspace_id.as_str());
    of!(ChatCreated, "chat_created_type", e => e.chat_type.as_str());
    of!(ChatCreated, "chat_created_members_count", e => e.initial_members_count);

    of!(MessageSent, "message_chat_id", e => e.chat_id.as_str());
    of!(MessageSent, "message_type", e => e.r#type.as_str());
    of!(MessageSent, "message_size", e => e.size);
    of!(MessageSent, "message_total_files", e => e.total_files);
    of!(MessageSent, "message_has_mentions", e => e.has_mentions);
    of!(MessageSent, "message_has_links", e => e.has_links);

    of!(ChatJoined, "chat_joined_id", e => e.chat_id.as_str());
    of!(ChatJoined, "chat_joined_method", e => e.join_method.as_str());

    of!(ChatLeft, "chat_left_id", e => e.chat_id.as_str());
    of!(ChatLeft, "chat_left_reason", e => e.leave_reason.as_str());

    of!(Navigation, "navigation_from", e => e.from.as_str());
    of!(Navigation, "navigation_to", e => e.to.as_str());
    of!(Navigation, "navigation_duration_ms", e => e.duration_ms);

    of!(FileUploaded, "file_uploaded_type", e => e.file_type.as_str());
    of!(FileUploaded, "file_uploaded_size", e => e.file_size);
    of!(FileUploaded, "file_uploaded_method", e => e.upload_method.as_str());
    of!(FileUploaded, "file_uploaded_duration_ms", e => e.upload_duration_ms);

    of!(FileDownloaded, "file_downloaded_type", e => e.file_type.as_str());
    of!(FileDownloaded, "file_downloaded_size", e => e.file_size);
    of!(FileDownloaded, "file_downloaded_duration_ms", e => e.download_duration_ms);

    of!(SearchPerformed, "search_type", e => e.search_type.as_str());
    of!(SearchPerformed, "search_query_length", e => e.query_length.as_str());
    of!(SearchPerformed, "search_results_count", e => e.results_count);
    of!(SearchPerformed, "search_duration_ms", e => e.search_duration_ms);
    of!(SearchPerformed, "search_has_filters", e => e.has_filters);

    of!(NotificationReceived, "notification_type", e => e.notification_type.as_str());
    of!(NotificationReceived, "notification_source", e => e.source.as_str());
    of!(NotificationReceived, "notification_was_clicked", e => e.was_clicked);

    of!(ErrorOccurred, "error_type", e => e.error_type.as_str());
    of!(ErrorOccurred, "error_code", e => e.error_code.as_str());
    of!(ErrorOccurred, "error_message", e => e.error_message.as_str());
    of!(ErrorOccurred, "error_stack_trace", e => e.stack_trace.as_str());
    of!(ErrorOccurred, "error_context", e => e.context.as_str());

    of!(BotResponse, "bot_response_bot_id", e => e.bot_id.as_str());
    of!(BotResponse, "bot_response_chat_id", e => e.chat_id.as_str());
    of!(BotResponse, "bot_response_type", e => e.response_type.as_str());
    of!(BotResponse, "bot_response_time_ms", e => e.response_time_ms);
    of!(BotResponse, "bot_response_tokens_used", e => e.tokens_used);
    of!(BotResponse, "bot_response_success", e => e.success);
    of!(BotResponse, "bot_response_error_message", e => e.error_message.as_str());

    each!("payload", e => e.unknown_payload());

    block.build()
}

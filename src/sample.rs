//! Events as a chat product in use would send them, for trying things out and
//! for load: made up, the same for the same seed, and nobody's data.

mod client;
mod kind;

use std::time::SystemTime;

use clap::ValueEnum;
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use self::client::{Client, pick};
use crate::pb::{
    AnalyticsEvent, AppExitEvent, AppStartEvent, BotResponseEvent, ChatCreatedEvent,
    ChatJoinedEvent, ChatLeftEvent, ErrorOccurredEvent, FileDownloadedEvent, FileUploadedEvent,
    MessageSentEvent, NavigationEvent, NotificationReceivedEvent, SearchPerformedEvent,
    UserLoginEvent, UserLogoutEvent, UserRegisterEvent, analytics_event::EventType,
    app_exit_event::ExitCode,
};

pub use self::kind::Kind;

/// Fewer than the clients: some people use two devices.
const USERS: usize = 700;
const CLIENTS: usize = 1_000;
const WORKSPACES: usize = 12;
const CHATS_A_WORKSPACE: usize = 25;

const LOGIN_METHODS: [&str; 4] = ["password", "password", "oauth", "sso"];
const FILE_TYPES: [&str; 5] = [
    "image/png",
    "image/jpeg",
    "application/pdf",
    "text/csv",
    "video/mp4",
];
const PAGES: [&str; 6] = [
    "/chats",
    "/search",
    "/files",
    "/settings/profile",
    "/notifications",
    "/workspaces",
];

/// Error type, code, message and the place in the code.
const ERRORS: [[&str; 4]; 3] = [
    [
        "network",
        "E_TIMEOUT",
        "request timed out after 10000 ms",
        "fetchMessages (chat.js:214:17)",
    ],
    [
        "network",
        "E_SOCKET",
        "connection closed before the reply",
        "reconnect (socket.js:88:9)",
    ],
    [
        "render",
        "E_TYPE",
        "cannot read properties of undefined (reading 'members')",
        "MemberList (members.js:41:23)",
    ],
];

/// An event and where it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The subject without its prefix, `fechatter.analytics.`: `message.sent`.
    pub subject: &'static str,
    /// What to encode and publish there.
    pub event: AnalyticsEvent,
}

/// A steady population of clients, their users, chats and workspaces.
///
/// A few clients and chats are busy and most are quiet (Zipf's law), and each
/// client keeps its device, place and user.
pub struct Population {
    rng: SmallRng,
    clients: Vec<Client>,
    /// The kinds of the next events. Dealt like cards instead of drawn one by one,
    /// so that the rarest kind shows up in every thousand events.
    deck: Vec<Kind>,
}

impl Population {
    /// The same seed gives the same population and, for the same arguments, the
    /// same events.
    pub fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let clients = (0..CLIENTS)
            .map(|number| Client::new(number % USERS, &mut rng))
            .collect();
        Self {
            rng,
            clients,
            deck: Vec::new(),
        }
    }

    /// What happens next, of a given kind or of any.
    pub fn event(&mut self, now: SystemTime, kind: Option<Kind>) -> Sample {
        let kind = kind.unwrap_or_else(|| self.deal());
        let client = &mut self.clients[zipf(CLIENTS, &mut self.rng)];
        if kind == Kind::AppStart {
            client.start_session(&mut self.rng);
        }
        let event = AnalyticsEvent {
            context: Some(client.context(now, &mut self.rng)),
            event_type: Some(happening(kind, client.user, &mut self.rng)),
        };
        Sample {
            subject: kind.subject(),
            event,
        }
    }

    fn deal(&mut self) -> Kind {
        loop {
            if let Some(kind) = self.deck.pop() {
                return kind;
            }
            for kind in Kind::value_variants() {
                self.deck.extend([*kind].repeat(kind.per_thousand()));
            }
            self.deck.shuffle(&mut self.rng);
        }
    }
}

fn happening(kind: Kind, user: usize, rng: &mut SmallRng) -> EventType {
    match kind {
        Kind::AppStart => EventType::AppStart(AppStartEvent {}),
        Kind::AppExit => EventType::AppExit(AppExitEvent {
            exit_code: match rng.random_range(0..100) {
                0 => ExitCode::Crash,
                1..4 => ExitCode::Error,
                _ => ExitCode::Success,
            }
            .into(),
        }),
        Kind::UserLogin => EventType::UserLogin(UserLoginEvent {
            email: email(user),
            login_method: any(&LOGIN_METHODS, rng),
        }),
        Kind::UserLogout => EventType::UserLogout(UserLogoutEvent { email: email(user) }),
        Kind::UserRegister => EventType::UserRegister(UserRegisterEvent {
            email: email(user),
            workspace_id: workspace(user),
            registration_method: any(&["invitation", "email", "oauth"], rng),
        }),
        Kind::ChatCreated => EventType::ChatCreated(ChatCreatedEvent {
            workspace_id: workspace(user),
            chat_type: any(
                &["single", "group", "private_channel", "public_channel"],
                rng,
            ),
            initial_members_count: spread(2..=40, rng),
        }),
        Kind::MessageSent => EventType::MessageSent(message(user, rng)),
        Kind::ChatJoined => EventType::ChatJoined(ChatJoinedEvent {
            chat_id: chat(user, rng),
            join_method: any(&["invitation", "search", "link"], rng),
        }),
        Kind::ChatLeft => EventType::ChatLeft(ChatLeftEvent {
            chat_id: chat(user, rng),
            leave_reason: any(&["voluntary", "voluntary", "removed", "archived"], rng),
        }),
        Kind::Navigation => EventType::Navigation(NavigationEvent {
            from: any(&PAGES, rng),
            to: format!("/chats/{}", chat(user, rng)),
            duration_ms: spread(300..=600_000, rng),
        }),
        Kind::FileUploaded => {
            let size: i32 = spread(2_000..=50_000_000, rng);
            EventType::FileUploaded(FileUploadedEvent {
                file_type: any(&FILE_TYPES, rng),
                file_size: size.into(),
                upload_method: any(&["drag_drop", "paste", "picker"], rng),
                upload_duration_ms: transfer_ms(size, rng),
            })
        }
        Kind::FileDownloaded => {
            let size: i32 = spread(2_000..=50_000_000, rng);
            EventType::FileDownloaded(FileDownloadedEvent {
                file_type: any(&FILE_TYPES, rng),
                file_size: size.into(),
                download_duration_ms: transfer_ms(size, rng),
            })
        }
        Kind::SearchPerformed => EventType::SearchPerformed(SearchPerformedEvent {
            search_type: any(&["message", "message", "file", "user", "chat"], rng),
            query_length: rng.random_range(2..40).to_string(),
            results_count: spread(1..=500, rng) - 1,
            search_duration_ms: spread(8..=900, rng),
            has_filters: rng.random_bool(0.2),
        }),
        Kind::NotificationReceived => EventType::NotificationReceived(NotificationReceivedEvent {
            notification_type: any(&["message", "message", "mention", "invitation"], rng),
            source: any(&["push", "in_app", "email"], rng),
            was_clicked: rng.random_bool(0.3),
        }),
        Kind::ErrorOccurred => EventType::ErrorOccurred(error(rng)),
        Kind::BotResponse => EventType::BotResponse(bot_response(user, rng)),
    }
}

fn message(user: usize, rng: &mut SmallRng) -> MessageSentEvent {
    let total_files = if rng.random_bool(0.1) {
        spread(1..=6, rng)
    } else {
        0
    };
    let types: &[&str] = match total_files {
        0 => &["text", "text", "text", "text", "text", "text", "code"],
        _ => &["image", "image", "file", "voice"],
    };
    MessageSentEvent {
        chat_id: chat(user, rng),
        r#type: any(types, rng),
        size: spread(2..=4_000, rng),
        total_files,
        has_mentions: rng.random_bool(0.15),
        has_links: rng.random_bool(0.08),
    }
}

fn error(rng: &mut SmallRng) -> ErrorOccurredEvent {
    let [error_type, code, text, place] = *pick(&ERRORS, rng);
    ErrorOccurredEvent {
        error_type: error_type.into(),
        error_code: code.into(),
        error_message: text.into(),
        stack_trace: format!("Error: {text}\n    at {place}\n    at run (app.js:12:5)"),
        context: any(&PAGES, rng),
    }
}

fn bot_response(user: usize, rng: &mut SmallRng) -> BotResponseEvent {
    let success = rng.random_bool(0.97);
    BotResponseEvent {
        bot_id: any(&["bot_summary", "bot_translate", "bot_answers"], rng),
        chat_id: chat(user, rng),
        response_type: any(&["text", "text", "code", "image"], rng),
        response_time_ms: spread(200..=20_000, rng).unsigned_abs().into(),
        tokens_used: spread(20..=4_000, rng).unsigned_abs(),
        success,
        error_message: if success { "" } else { "model overloaded" }.into(),
    }
}

/// In a domain that is set aside for examples: nobody's address.
fn email(user: usize) -> String {
    format!("user{user}@example.org")
}

fn workspace(user: usize) -> String {
    format!("ws_{}", user % WORKSPACES)
}

/// One of the chats of the user's workspace.
fn chat(user: usize, rng: &mut SmallRng) -> String {
    let workspace = user % WORKSPACES;
    let chat = workspace * CHATS_A_WORKSPACE + zipf(CHATS_A_WORKSPACE, rng);
    format!("chat_{}", 1_000 + chat)
}

fn any(choices: &[&str], rng: &mut SmallRng) -> String {
    (*pick(choices, rng)).into()
}

/// An index below `count`, index i about 1 / (i + 1) times as often as the first.
fn zipf(count: usize, rng: &mut SmallRng) -> usize {
    let rank = ((count + 1) as f64).powf(rng.random());
    (rank as usize).clamp(1, count) - 1
}

/// Sizes and durations spread over magnitudes: small ones are common, large ones
/// rare. The range starts at 1 or higher.
fn spread(range: std::ops::RangeInclusive<i32>, rng: &mut SmallRng) -> i32 {
    let (low, high) = (f64::from(*range.start()), f64::from(*range.end()));
    (low * (high / low).powf(rng.random())) as i32
}

/// How long a file of this many bytes is on its way, at 0.5 to 12 MB/s.
fn transfer_ms(bytes: i32, rng: &mut SmallRng) -> i32 {
    30 + bytes / spread(500..=12_000, rng)
}

#[cfg(test)]
mod tests;

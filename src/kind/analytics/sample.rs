//! Events as a chat product in use would send them, for trying things out and for load:
//! made up, the same for the same seed, and nobody's data.

mod client;

use std::time::SystemTime;

use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use self::client::{Client, pick};
use super::types::Type;
use crate::pb::{
    AnalyticsEvent, AppExitEvent, AppStartEvent, BotResponseEvent, ChatCreatedEvent,
    ChatJoinedEvent, ChatLeftEvent, ErrorOccurredEvent, FileDownloadedEvent, FileUploadedEvent,
    MessageSentEvent, NavigationEvent, NotificationReceivedEvent, SearchPerformedEvent,
    UserLoginEvent, UserLogoutEvent, UserRegisterEvent, analytics_event::EventType,
    app_exit_event::ExitCode,
};

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
pub struct Happening {
    /// The subject without its prefix, `fechatter.analytics.`: `message.sent`.
    pub subject: String,
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
    /// The types of the next events. Dealt like cards instead of drawn one by one,
    /// so that the rarest type shows up in every thousand events.
    deck: Vec<Type>,
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

    /// What happens next, of a given type or of any.
    pub fn event(&mut self, now: SystemTime, of: Option<Type>) -> Happening {
        let event_type = of.unwrap_or_else(|| self.deal());
        let client = &mut self.clients[zipf(CLIENTS, &mut self.rng)];
        if event_type == Type::AppStart {
            client.start_session(&mut self.rng);
        }
        let event = AnalyticsEvent {
            context: Some(client.context(now, &mut self.rng)),
            event_type: Some(details(event_type, client.user, &mut self.rng)),
        };
        Happening {
            subject: event_type.name().replacen('_', ".", 1),
            event,
        }
    }

    fn deal(&mut self) -> Type {
        loop {
            if let Some(next) = self.deck.pop() {
                return next;
            }
            for event_type in Type::ALL {
                let count = per_thousand(*event_type);
                self.deck.extend([*event_type].repeat(count));
            }
            self.deck.shuffle(&mut self.rng);
        }
    }
}

/// How many of 1,000 events are of a type, about as in a chat product in use: people
/// write, read and look around far more often than they log in.
fn per_thousand(event_type: Type) -> usize {
    match event_type {
        Type::MessageSent => 380,
        Type::Navigation => 290,
        Type::NotificationReceived => 110,
        Type::SearchPerformed => 40,
        Type::FileDownloaded => 35,
        Type::BotResponse => 30,
        Type::AppStart => 25,
        Type::FileUploaded => 22,
        Type::AppExit => 20,
        Type::UserLogin => 12,
        Type::ChatJoined => 10,
        Type::ErrorOccurred => 9,
        Type::UserLogout => 7,
        Type::ChatLeft => 4,
        Type::ChatCreated => 4,
        Type::UserRegister => 2,
    }
}

fn details(event_type: Type, user: usize, rng: &mut SmallRng) -> EventType {
    match event_type {
        Type::AppStart => EventType::AppStart(AppStartEvent {}),
        Type::AppExit => EventType::AppExit(AppExitEvent {
            exit_code: match rng.random_range(0..100) {
                0 => ExitCode::Crash,
                1..4 => ExitCode::Error,
                _ => ExitCode::Success,
            }
            .into(),
        }),
        Type::UserLogin => EventType::UserLogin(UserLoginEvent {
            email: email(user),
            login_method: any(&LOGIN_METHODS, rng),
        }),
        Type::UserLogout => EventType::UserLogout(UserLogoutEvent { email: email(user) }),
        Type::UserRegister => EventType::UserRegister(UserRegisterEvent {
            email: email(user),
            workspace_id: workspace(user),
            registration_method: any(&["invitation", "email", "oauth"], rng),
        }),
        Type::ChatCreated => EventType::ChatCreated(ChatCreatedEvent {
            workspace_id: workspace(user),
            chat_type: any(
                &["single", "group", "private_channel", "public_channel"],
                rng,
            ),
            initial_members_count: spread(2..=40, rng),
        }),
        Type::MessageSent => EventType::MessageSent(message(user, rng)),
        Type::ChatJoined => EventType::ChatJoined(ChatJoinedEvent {
            chat_id: chat(user, rng),
            join_method: any(&["invitation", "search", "link"], rng),
        }),
        Type::ChatLeft => EventType::ChatLeft(ChatLeftEvent {
            chat_id: chat(user, rng),
            leave_reason: any(&["voluntary", "voluntary", "removed", "archived"], rng),
        }),
        Type::Navigation => EventType::Navigation(NavigationEvent {
            from: any(&PAGES, rng),
            to: format!("/chats/{}", chat(user, rng)),
            duration_ms: spread(300..=600_000, rng),
        }),
        Type::FileUploaded => {
            let size: i32 = spread(2_000..=50_000_000, rng);
            EventType::FileUploaded(FileUploadedEvent {
                file_type: any(&FILE_TYPES, rng),
                file_size: size.into(),
                upload_method: any(&["drag_drop", "paste", "picker"], rng),
                upload_duration_ms: transfer_ms(size, rng),
            })
        }
        Type::FileDownloaded => {
            let size: i32 = spread(2_000..=50_000_000, rng);
            EventType::FileDownloaded(FileDownloadedEvent {
                file_type: any(&FILE_TYPES, rng),
                file_size: size.into(),
                download_duration_ms: transfer_ms(size, rng),
            })
        }
        Type::SearchPerformed => EventType::SearchPerformed(SearchPerformedEvent {
            search_type: any(&["message", "message", "file", "user", "chat"], rng),
            query_length: rng.random_range(2..40).to_string(),
            results_count: spread(1..=500, rng) - 1,
            search_duration_ms: spread(8..=900, rng),
            has_filters: rng.random_bool(0.2),
        }),
        Type::NotificationReceived => EventType::NotificationReceived(NotificationReceivedEvent {
            notification_type: any(&["message", "message", "mention", "invitation"], rng),
            source: any(&["push", "in_app", "email"], rng),
            was_clicked: rng.random_bool(0.3),
        }),
        Type::ErrorOccurred => EventType::ErrorOccurred(error(rng)),
        Type::BotResponse => EventType::BotResponse(bot_response(user, rng)),
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

/// How long a file of this many bytes takes to transfer, at 0.5 to 12 MB/s.
fn transfer_ms(bytes: i32, rng: &mut SmallRng) -> i32 {
    30 + bytes / spread(500..=12_000, rng)
}

#[cfg(test)]
mod tests;

//! The types of the wire contract, each with the name by which it is stored: its field's
//! name in the contract.

use crate::pb::analytics_event::EventType;

macro_rules! types {
    ($($variant:ident = $name:literal,)*) => {
        /// A type of event.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Type {
            $($variant,)*
        }

        impl Type {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name of every type.
            pub const NAMES: &[&str] = &[$($name,)*];

            pub fn of(event: &EventType) -> Self {
                match event {
                    $(EventType::$variant(_) => Self::$variant,)*
                }
            }

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

types! {
    AppStart = "app_start",
    AppExit = "app_exit",
    UserLogin = "user_login",
    UserLogout = "user_logout",
    UserRegister = "user_register",
    ChatCreated = "chat_created",
    MessageSent = "message_sent",
    ChatJoined = "chat_joined",
    ChatLeft = "chat_left",
    Navigation = "navigation",
    FileUploaded = "file_uploaded",
    FileDownloaded = "file_downloaded",
    SearchPerformed = "search_performed",
    NotificationReceived = "notification_received",
    ErrorOccurred = "error_occurred",
    BotResponse = "bot_response",
}

impl Type {
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|it| it.name() == name)
    }
}

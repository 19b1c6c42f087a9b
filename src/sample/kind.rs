use std::str::FromStr;

use clap::ValueEnum;

/// What can happen: the sixteen types of the wire contract.
///
/// On the command line and as a string a kind is named as in the column
/// `event_type`: `message_sent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Kind {
    AppStart,
    AppExit,
    UserLogin,
    UserLogout,
    UserRegister,
    ChatCreated,
    MessageSent,
    ChatJoined,
    ChatLeft,
    Navigation,
    FileUploaded,
    FileDownloaded,
    SearchPerformed,
    NotificationReceived,
    ErrorOccurred,
    BotResponse,
}

impl Kind {
    /// The subject that events of this kind go to, without its prefix:
    /// `message.sent`.
    pub fn subject(self) -> &'static str {
        match self {
            Self::AppStart => "app.start",
            Self::AppExit => "app.exit",
            Self::UserLogin => "user.login",
            Self::UserLogout => "user.logout",
            Self::UserRegister => "user.register",
            Self::ChatCreated => "chat.created",
            Self::MessageSent => "message.sent",
            Self::ChatJoined => "chat.joined",
            Self::ChatLeft => "chat.left",
            Self::Navigation => "navigation",
            Self::FileUploaded => "file.uploaded",
            Self::FileDownloaded => "file.downloaded",
            Self::SearchPerformed => "search.performed",
            Self::NotificationReceived => "notification.received",
            Self::ErrorOccurred => "error.occurred",
            Self::BotResponse => "bot.response",
        }
    }

    /// How many of 1,000 events are of this kind, about as in a chat product in
    /// use: people write, read and look around far more often than they log in.
    pub(super) fn per_thousand(self) -> usize {
        match self {
            Self::MessageSent => 380,
            Self::Navigation => 290,
            Self::NotificationReceived => 110,
            Self::SearchPerformed => 40,
            Self::FileDownloaded => 35,
            Self::BotResponse => 30,
            Self::AppStart => 25,
            Self::FileUploaded => 22,
            Self::AppExit => 20,
            Self::UserLogin => 12,
            Self::ChatJoined => 10,
            Self::ErrorOccurred => 9,
            Self::UserLogout => 7,
            Self::ChatLeft => 4,
            Self::ChatCreated => 4,
            Self::UserRegister => 2,
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        <Self as ValueEnum>::from_str(name, false)
            .map_err(|_| format!("unknown event type `{name}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_named_as_its_subject_says() {
        for kind in Kind::value_variants() {
            let name = kind.subject().replace('.', "_");
            assert_eq!(name.parse(), Ok(*kind));
        }
        assert!("poll_created".parse::<Kind>().is_err());
    }

    #[test]
    fn the_shares_add_up() {
        let total: usize = Kind::value_variants()
            .iter()
            .map(|kind| kind.per_thousand())
            .sum();
        assert_eq!(total, 1000);
    }
}

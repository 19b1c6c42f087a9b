//! Where the daemon itself can strike, in a build for tests.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    AfterRecord,
    DuringInsert,
    AfterInsert,
    AfterCommit,
    BeforeAck,
    AfterCompare,
    AfterCreate,
    AfterFill,
    DuringSwap,
    AfterSwap,
}

impl Step {
    /// Those on the way of every batch.
    pub const OF_A_BATCH: [Self; 5] = [
        Self::AfterRecord,
        Self::DuringInsert,
        Self::AfterInsert,
        Self::AfterCommit,
        Self::BeforeAck,
    ];

    /// Those that leave a batch of which the next daemon cannot know how far it got.
    pub const IN_FLIGHT: [Self; 3] = [Self::AfterRecord, Self::DuringInsert, Self::AfterInsert];

    /// Those on the way of a view's day that is compared with a recount, and of one
    /// that is built again because it differs.
    pub const OF_A_RECOUNT: [Self; 5] = [
        Self::AfterCompare,
        Self::AfterCreate,
        Self::AfterFill,
        Self::DuringSwap,
        Self::AfterSwap,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::AfterRecord => "after-record",
            Self::DuringInsert => "during-insert",
            Self::AfterInsert => "after-insert",
            Self::AfterCommit => "after-commit",
            Self::BeforeAck => "before-ack",
            Self::AfterCompare => "after-compare",
            Self::AfterCreate => "after-create",
            Self::AfterFill => "after-fill",
            Self::DuringSwap => "during-swap",
            Self::AfterSwap => "after-swap",
        }
    }
}
